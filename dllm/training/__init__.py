"""Trains files that the package ships: the embedded model, the filters of Learn2PD."""
