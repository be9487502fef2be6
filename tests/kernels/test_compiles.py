"""Every kernel becomes machine code of a GPU that is not here: the interpreter refuses less."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

pytest.importorskip("triton")

COMPILE = """
import itertools, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dllm.kernels import gated_product, residual_norm, rotated_write, triton_statistics

def build(kernel, pointers, numbers, constants):
    given = {**pointers, **numbers, **dict.fromkeys(constants, "constexpr")}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=given, constexprs=places)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"]

def named(names, kind):
    return dict.fromkeys(names.split(), kind)

own = "*" + sys.argv[1]
for one, two in itertools.product((True, False), repeat=2):
    tensors = named("x branch weight sum_out normed_out", own)
    constants = {"adds": one, "multiply_first": two, "block": 4096}
    build(residual_norm._kernel, tensors, {"width": "i32", "eps": "fp32"}, constants)
    tensors = named("qkv q_weight k_weight q_out k_out keys values", own)
    tensors |= {**named("cos sin", "*fp32"), "slots": "*i64"}
    constants = {"num_heads": 32, "num_kv_heads": 8, "width": 128, "rotary": 64, "block": 128}
    constants |= {"norms": one, "multiply_first": one, "in_float32": two}
    numbers = {**named("num_fed num_stored", "i32"), "eps": "fp32"}
    build(rotated_write._kernel, tensors, numbers, constants)
    tensors = {"logits": own, "numbers_out": "*fp32"}
    tensors |= named("token_out seeds steps columns", "*i64")
    numbers = named("width batch_stride row_stride num_tokens mask_token num_rows", "i32")
    constants = {"draws": one, "tempered": two, "by_column": not two}
    constants |= {"reciprocal": True, "block": 2048}
    build(triton_statistics._kernel, tensors, numbers | {"temperature": "fp32"}, constants)
numbers = named("width gate_stride up_stride", "i32")
build(gated_product._kernel, named("gate up out", own), numbers, {"block": 1024})
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_kernel_compiles(dtype: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, dtype],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
