"""Checkpoints: found, checked, read, placed, saved."""
