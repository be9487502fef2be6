"""Tests of what holds for every scheduler, cache and model."""
