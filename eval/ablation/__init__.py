"""Grids of settings from YAML: read, run into a folder, resumed."""
