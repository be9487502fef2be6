"""Tests of our schedulers inside SGLang."""
