"""Loads and saves checkpoints: their files, their settings, their weights on devices."""
