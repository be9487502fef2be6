"""The tests mirror the tree: laws, parity, worked examples, errors."""
