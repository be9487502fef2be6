"""Tests of languages in decoding."""
