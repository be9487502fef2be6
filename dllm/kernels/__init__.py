"""Kernels for one device, each with what it computes written in plain PyTorch beside it."""
