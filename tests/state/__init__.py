"""Tests of the state of a step."""
