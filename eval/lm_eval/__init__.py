"""The lm-evaluation-harness with a model of this project."""
