"""Tests of advice on a decoding step."""
