"""Tests of documentation, packaging and conventions."""
