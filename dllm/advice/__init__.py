"""Advises on cache, verifier and batch from counted FLOPs and bytes, without loading a weight."""

from __future__ import annotations

from dllm.advice.advice import Advice, BatchAdvice, CacheAdvice, VerifierAdvice, advise
from dllm.advice.figures import Curve, Figures, assumed
from dllm.advice.seconds import FORMULAS, PassSeconds, PassWork, seconds_of, total_seconds
from dllm.advice.timing import Bench, measure
from dllm.advice.workload import CACHES, Network, Passes, Workload, autoregressive, passes_of

__all__ = [
    "CACHES",
    "FORMULAS",
    "Advice",
    "BatchAdvice",
    "Bench",
    "CacheAdvice",
    "Curve",
    "Figures",
    "Network",
    "PassSeconds",
    "PassWork",
    "Passes",
    "VerifierAdvice",
    "Workload",
    "advise",
    "assumed",
    "autoregressive",
    "measure",
    "passes_of",
    "seconds_of",
    "total_seconds",
]
