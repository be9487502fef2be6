"""ParallelBench (2510.04767): lists and grids whose tokens depend on each other, and its limits.

Questions and wording are this project's own; what is asked and how it is scored is the paper's.
"""
