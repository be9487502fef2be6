"""The same passes, faster: joined weights, compiled layers, captured graphs, narrow weights."""
