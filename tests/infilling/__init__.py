"""Tests of templates laid out."""
