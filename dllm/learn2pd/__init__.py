"""Learn2PD: the filter, the data that it learns from, and its training."""
