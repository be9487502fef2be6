"""Tests of our decoding inside other libraries."""
