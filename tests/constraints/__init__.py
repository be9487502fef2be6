"""Tests of the languages of answers."""
