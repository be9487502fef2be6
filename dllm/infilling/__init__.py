"""Infilling: templates laid out on the canvas, and how long their holes are."""
