"""Faults that the tests must catch, each planted by itself into a copy of the project."""
