"""Whether a network has room on its devices, asked before its weights are read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.models.config import printable
from dllm.models.cost import rounded_bytes
from dllm.models.loading.empty import kept_in
from dllm.models.loading.weights import Devices, device_of
from dllm.models.memory import GUARDED, Need, NotEnoughMemoryError, check_room, ran_out
from dllm.models.speed.rounded import rounding_of
from dllm.models.transformer import Transformer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """What a network will take, by device."""

    name: str
    dtype: torch.dtype
    needs: Mapping[torch.device, Need]

    @staticmethod
    def of(name: str, network: Transformer, devices: Devices, ways: Sequence[str]) -> Room:
        """Returns the need of a network in its dtype, which may have no memory yet."""
        dtype = network.embedding.weight.dtype
        needs: dict[torch.device, Need] = {}
        for parameter, weight in network.named_parameters():
            where = device_of(parameter, devices)
            size = weight.numel() * kept_in(parameter, weight, dtype).itemsize
            stays, passing = _kept(parameter, weight, size, ways)
            so_far = needs.get(where, Need(0, 0))
            needs[where] = Need(so_far.weights + stays, max(so_far.reading, passing))
        return Room(name, dtype, needs)

    def check(self) -> None:
        """Raises NotEnoughMemoryError where there is none, and warns where little is left."""
        named = str(self.dtype).removeprefix("torch.")
        for advice in check_room(self.name, named, self.needs):
            _LOG.warning("%s", printable(advice))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turns memory that runs out while weights are read into NotEnoughMemoryError."""
        reason = ""
        try:
            yield
        except GUARDED as error:
            if not ran_out(error):
                raise
            reason = str(error).strip().split("\n")[0] or type(error).__name__
        if reason:  # outside of the handler, whose frames hold what was read
            self.check()
            named = str(self.dtype).removeprefix("torch.")
            raise NotEnoughMemoryError(
                f"memory ran out while {self.name!r} was read in {named} ({reason}), though there "
                "was enough when that began: something else took it, or the process may "
                "have no more addresses (`ulimit -v`), of which files that are read take some. Try "
                "again, or give a narrower dtype, speed='int8', 'fp8' or 'int4'"
            )


def _kept(parameter: str, weight: Tensor, size: int, ways: Sequence[str]) -> tuple[int, int]:
    """Returns the bytes of a parameter that stay, and those that its reading takes beside them."""
    in_layer = parameter.startswith(("blocks.", "decoder_blocks."))
    rounding = rounding_of(ways)
    if rounding is not None and in_layer and weight.dim() > 1:
        # Its layer is there in full until it is rounded, in float32 matrix by matrix.
        return rounded_bytes(
            weight, rounding.bits, rounding.group_size, size // weight.numel()
        ), 8 * size
    if "packed" in ways and weight.dim() > 1 and not parameter.startswith("embedding."):
        return 2 * size, size
    return size, size if "fused" in ways and in_layer else 0
