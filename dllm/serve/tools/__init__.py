"""Calls of functions: which a request offers, how the model is told, and what it calls."""
