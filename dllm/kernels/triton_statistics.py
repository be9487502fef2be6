"""The Triton kernel of `statistics`: one pass over the vocabulary, one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm.kernels.draw import Draw

BLOCK = 2048  # tokens that a program looks at together
_WARPS = 8
# Of SplitMix64, as in `dllm/state/noise.py`.
_GOLDEN_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _mix(bits: tl.tensor) -> tl.tensor:
    """Returns SplitMix64's finaliser of uint64 words."""
    bits = (bits ^ (bits >> 30)) * _MIX_1
    bits = (bits ^ (bits >> 27)) * _MIX_2
    return bits ^ (bits >> 31)


@triton.jit
def _gumbel(word: tl.tensor, at: tl.tensor) -> tl.tensor:
    """Returns Gumbel noise in float64 of tokens, from the word of their column.

    As `CounterNoise.tokens` has it; float64, as the tail is cut off in a lower precision.
    """
    bits = _mix(word + (at + 1).to(tl.uint64) * _GOLDEN_GAMMA)
    uniform = ((bits >> 11).to(tl.float64) + 0.5) * 1.1102230246251565e-16  # 2**-53
    return -tl.log(-tl.log(uniform))


@triton.jit
def _kernel(  # noqa: PLR0913, PLR0915 a kernel takes its tensors one by one, and calls are inlined
    logits: tl.tensor,
    token_out: tl.tensor,
    numbers_out: tl.tensor,
    width: tl.tensor,
    batch_stride: tl.tensor,
    row_stride: tl.tensor,
    num_tokens: tl.tensor,
    mask_token: tl.tensor,
    num_rows: tl.tensor,
    seeds: tl.tensor,
    steps: tl.tensor,
    columns: tl.tensor,
    temperature: tl.tensor,
    draws: tl.constexpr,
    tempered: tl.constexpr,
    by_column: tl.constexpr,
    reciprocal: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Writes the token and five numbers of a row.

    With `draws` the token has the largest sum of its logit, over the temperature, and noise; with
    `tempered` numbers are those of logits over the temperature, too. Noise is a hash of the batch
    row's seed, its step, `by_column` one of each row of logits, the row's column and the token.

    Every lane keeps the statistics of its own tokens, and they are joined once, at the end: its
    largest and second largest logit, the sum s of exp(x - largest) and the sum t of the same times
    (x - largest), its best token. Entropy is log s - t / s.
    """
    row = tl.program_id(0).to(tl.int64)
    start_of_row = logits + (row // width) * batch_stride + (row % width) * row_stride
    lane = tl.arange(0, block)
    low = float("-inf")
    first = tl.full((block,), low, tl.float32)
    second = tl.full((block,), low, tl.float32)
    best = tl.full((block,), low, tl.float64 if draws else tl.float32)
    own = tl.full((block,), low, tl.float32)  # logit of the best
    word = 0
    if draws:  # as `CounterNoise.words` has it
        seed = tl.load(seeds + row // width).to(tl.uint64, bitcast=True)
        step = tl.load(steps + (row if by_column else row // width))
        word = _mix(_mix(seed) + (step + 1).to(tl.uint64) * _GOLDEN_GAMMA)
        word = _mix(word + (tl.load(columns + row) + 1).to(tl.uint64) * _GOLDEN_GAMMA)
    s = tl.zeros((block,), tl.float32)
    t = tl.zeros((block,), tl.float32)
    # Where every logit is -inf, the lowest token that may be proposed stands here.
    token = tl.where((lane < num_tokens) & (lane != mask_token), lane, num_tokens)
    broken = tl.zeros((block,), tl.int32)
    for start in range(0, num_tokens, block):
        at = start + lane
        x = tl.load(start_of_row + at, mask=at < num_tokens, other=low).to(tl.float32)
        broken = tl.where(x != x, 1, broken)  # only NaN differs from itself
        score = x
        if draws:  # torch multiplies by the reciprocal on CUDA, and divides on a CPU
            heated = x * temperature if reciprocal else x / temperature
            score = heated.to(tl.float64) + _gumbel(word, at)
            x = heated if tempered else x
        second = tl.maximum(second, tl.minimum(first, x))
        largest = tl.maximum(first, x)
        # exp(-inf - -inf) is not a number; with 0 in the place of the largest it is 0.
        shift = tl.where(largest == low, 0.0, largest)
        decay = tl.exp(first - shift)
        part = tl.exp(x - shift)
        t = tl.where(first == low, 0.0, decay * (t + (first - shift) * s))
        t += tl.where(x == low, 0.0, part * (x - shift))
        s = s * decay + part
        first = largest
        better = (score > best) & (at != mask_token)
        best = tl.where(better, score, best)
        own = tl.where(better, x, own)
        token = tl.where(better, at, token)
    top = tl.max(first, 0)
    leader = tl.min(tl.where(first == top, lane, block), 0)
    others = tl.max(tl.where(lane == leader, low, first), 0)
    runner_up = tl.maximum(others, tl.max(second, 0))
    shift = tl.where(top == low, 0.0, top)
    decay = tl.exp(first - shift)
    total = tl.sum(s * decay, 0)
    moment = tl.sum(tl.where(first == low, 0.0, decay * (t + (first - shift) * s)), 0)
    chosen = tl.min(tl.where(best == tl.max(best, 0), token, num_tokens), 0)
    logit = tl.max(tl.where(token == chosen, own, low), 0)
    tl.store(token_out + row, chosen.to(tl.int64))
    nan = tl.where(tl.max(broken, 0) > 0, float("nan"), 0.0)
    tl.store(numbers_out + row, logit + nan)
    tl.store(numbers_out + num_rows + row, top + nan)
    tl.store(numbers_out + 2 * num_rows + row, runner_up + nan)
    tl.store(numbers_out + 3 * num_rows + row, total + nan)
    tl.store(numbers_out + 4 * num_rows + row, tl.log(total) - moment / total + nan)


def measure(logits: Tensor, mask_token_id: int, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
    """Returns tokens (B, w) int64 and five numbers (5, B, w) float32 of logits (B, w, V).

    The numbers are the token's logit, the largest and the second largest logit, the sum of
    exp(logit - largest), and the entropy. Without a draw the token is the most probable one.
    """
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    batch, width, num_tokens = logits.shape
    token = torch.empty(batch, width, dtype=torch.int64, device=logits.device)
    numbers = torch.empty(5, batch, width, dtype=torch.float32, device=logits.device)
    if token.numel():
        _kernel[(batch * width,)](
            logits,
            token,
            numbers,
            width,
            logits.stride(0),
            logits.stride(1),
            num_tokens,
            mask_token_id,
            batch * width,
            *((token,) * 3 if draw is None else _words_of(draw)),
            1.0 if draw is None else _divisor(draw.temperature, logits.is_cuda),
            draws=draw is not None,
            tempered=draw is not None and draw.tempered,
            by_column=draw is not None and draw.step.dim() == draw.columns.dim(),
            reciprocal=logits.is_cuda,
            block=BLOCK,
            num_warps=_WARPS,
        )
    return token, numbers


def _words_of(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Returns seeds, steps and columns as the kernel reads them."""
    return draw.seeds.contiguous(), draw.step.contiguous(), draw.columns.contiguous()


def _divisor(temperature: float, reciprocal: bool) -> float:
    """Returns a temperature in float32, or one over it, as torch rounds it."""
    divisor = torch.tensor(temperature, dtype=torch.float32, device="cpu")
    return float(1 / divisor if reciprocal else divisor)
