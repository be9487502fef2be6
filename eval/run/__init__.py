"""One run: problems in, results out, resumed after a kill, shared among processes."""
