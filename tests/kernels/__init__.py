"""Triton's kernels against the operations that they stand for, interpreted where no GPU is."""
