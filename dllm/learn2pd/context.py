"""A filter that reads a prediction with its neighbours: tokens, statistics, masks on the left."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dllm.learn2pd import Origin, read_origin, write_weights
from dllm.models.config import ModelSpec

TINY = Path(__file__).parent / "context.safetensors"
KEY = "context_filter"  # of the origin in the file's metadata
REACH = 10  # columns on either side that a column's probability depends on
CHANNELS = 4  # statistics of each column, besides the embedding of its token
SUMMARIES = 7  # figures of all that is open on a column's left
_LEAST = 1e-6  # probability from which on one is like the other
_LEVELS = (0.5, 0.9, 0.97)  # confidences below which open columns on the left are counted


@dataclass(frozen=True)
class Reading:
    """What the filter reads of a window."""

    open: Tensor  # (B, W) bool: slots that hold a mask
    inside: Tensor  # (B, W) bool: slots of the row
    shown: Tensor  # (B, W) int64 the proposal where a column is open, its token elsewhere
    confidence: Tensor  # (B, W) float32 probability of the proposal
    second: Tensor  # (B, W) float32 the second largest probability
    entropy: Tensor  # (B, W) float32 nats

    def at(self, index: Tensor) -> Reading:
        """Returns the readings of some rows, by (n,) int64 or (B,) bool."""
        return Reading(*(getattr(self, field.name)[index] for field in fields(self)))

    def channels(self) -> Tensor:
        """Returns the statistics (B, W, 4) float32 of open columns, each 0 of all others."""
        sure = 2.8 - torch.logit(self.confidence, _LEAST) / 5
        second = self.second.clamp(min=_LEAST).log() / 5 + 2.8
        stacked = torch.stack([torch.ones_like(sure), sure, second, self.entropy], -1)
        return stacked * self.open[..., None]

    def summaries(self) -> Tensor:
        """Returns figures (B, W, 7) float32 of what is still open on each column's left."""
        open_, width = self.open.float(), self.open.shape[1]
        counts = [open_, *(open_ * (self.confidence < level) for level in _LEVELS)]
        before = [torch.log1p(count.cumsum(1) - count) for count in counts]
        doubt = (1 - self.confidence) * open_
        first = self.open.int().argmax(1, keepdim=True)
        distance = (torch.arange(width, device=first.device) - first).clamp(-1, 64) / 16
        share = open_.sum(1, keepdim=True) / self.inside.sum(1, keepdim=True).clamp(min=1)
        # cumsum - doubt may end a little below 0
        total = (doubt.cumsum(1) - doubt).clamp(min=0).sqrt()
        return torch.stack([*before, total, distance, share.expand_as(total)], -1)


class ContextNetwork(nn.Module):
    """Two hidden layers over a column's neighbourhood; a positive output says "right"."""

    def __init__(
        self, vocab_size: int, hidden: int = 48, embedding: int = 4, origin: Origin | None = None
    ) -> None:
        super().__init__()
        self.origin, self.path = origin, ""  # where it was read from
        self.embedding = nn.Embedding(vocab_size, embedding)
        self.near = nn.Conv1d(CHANNELS + embedding, hidden, 2 * REACH + 1, padding=REACH)
        self.left = nn.Linear(SUMMARIES, hidden, bias=False)
        self.middle = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)
        self._placed: dict[torch.device, ContextNetwork] = {}

    def forward(self, reading: Reading) -> Tensor:
        """Returns logits (B, W) float32, of open columns alone of any meaning."""
        last = self.embedding.num_embeddings - 1
        shown = self.embedding(reading.shown.clamp(max=last)) * reading.inside[..., None]
        seen = torch.cat([reading.channels(), shown], -1)
        hidden = self.near(seen.transpose(1, 2)).transpose(1, 2) + self.left(reading.summaries())
        out: Tensor = self.out(self.middle(hidden.relu()).relu())
        return out.squeeze(-1)

    def on(self, device: torch.device) -> ContextNetwork:
        """Returns the filter on a device, where it is put once."""
        if device == self.out.weight.device:
            return self
        if device not in self._placed:
            copy = ContextNetwork(*_sizes(self.state_dict()), self.origin)
            copy.load_state_dict(self.state_dict())
            self._placed[device] = copy.to(device).requires_grad_(False)
        return self._placed[device]

    def check_model(self, spec: ModelSpec) -> None:
        """Raises ValueError if the filter was trained on what must be another model.

        One without an origin serves any; tokens that it has no embedding for share the last one.
        """
        origin, served = self.origin, (spec.vocab_size, spec.mask_token_id)
        if origin is not None and (origin.vocab_size, origin.mask_token_id) != served:
            raise ValueError(
                f"filter {self.path!r} was trained on model {origin.model!r} (vocabulary of "
                f"{origin.vocab_size}, mask token {origin.mask_token_id}) and this one has "
                f"{spec.vocab_size} and {spec.mask_token_id}: `dllm train-context-filter` trains "
                "one for it, weights=null decodes without"
            )


def write_context_filter(network: ContextNetwork, path: Path) -> None:
    """Writes a filter with its origin; the file is there in full or not at all."""
    write_weights(network, network.origin, path, KEY)


def read_context_filter(given: str | Path) -> ContextNetwork:
    """Returns the filter of a file, or the embedded model's for "tiny".

    Raises ValueError that says what is missing, unknown or mis-shaped.
    """
    path = TINY if given == "tiny" else Path(given).expanduser()
    if not path.is_file():
        raise ValueError(
            f"there is no filter file {str(path)!r}: `dllm train-context-filter` trains one, "
            "'tiny' is the embedded model's"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        origin = read_origin(metadata, KEY)
        network = ContextNetwork(*_sizes(weights), origin)
        network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    except (ValueError, RuntimeError) as error:  # of the state's names and shapes
        raise ValueError(f"{path} is not a context filter: {error}") from None
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{path} is not a context filter: {name} is not finite")
    network.path = str(given)
    return network.requires_grad_(False)


def _sizes(weights: dict[str, Tensor]) -> tuple[int, int, int]:
    """Returns vocabulary, hidden width and embedding width of a filter with these weights."""
    missing = {"embedding.weight", "near.weight"} - set(weights)
    if missing:
        raise ValueError(f"it holds {sorted(weights)}, and no {sorted(missing)}")
    embedding, near = weights["embedding.weight"], weights["near.weight"]
    if embedding.ndim != 2 or near.ndim != 3:
        raise ValueError(f"embedding and near have {embedding.ndim} and {near.ndim} axes, not 2, 3")
    return embedding.shape[0], near.shape[0], embedding.shape[1]
