"""Recorded runs of the official implementations, and their replay."""
