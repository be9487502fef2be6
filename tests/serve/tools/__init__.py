"""Tests of calls of functions."""
