"""Rows that must be in a language: what their columns may hold, and what may be written."""
