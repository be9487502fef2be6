"""Tasks whose problems are made here, for small models."""
