"""Tests of the decoding loop."""
