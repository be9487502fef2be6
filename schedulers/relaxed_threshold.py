"""A threshold that falls with the share of masks (Streaming-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm.options import CountOrNone, Probability, Share
from dllm.schedulers.base import Candidates, Decision, Scheduler, View


@dataclass(frozen=True)
class RelaxedThreshold(Scheduler):
    """Commits columns >= threshold * (1 - relax * (1 - r)), r the share of masks; or the best one.

    Shared are the columns of the block, and `window` masks behind it with the row's last column:
    those that the authors' passes see. A block's first step takes the threshold as it is. Their
    passes leave other columns out, which the cache `pruned_suffix` does.
    """

    threshold: Probability = 0.9  # probability, compared with >=
    relax: Share = 0.3  # alpha
    window: CountOrNone = 96  # columns behind the block

    source = (
        "arXiv 2601.17917; xiaoshideta/Streaming-dLLM LLaDA-1.5/generate.py:"
        "generate_with_prefix_cache"
    )
    presets = {
        "llada15_256": {"relax": 0.3, "window": 96},
        "llada15_512": {"relax": 0.3, "window": 128},
    }

    def select(self, candidates: Candidates, view: View) -> Decision:
        least = self.threshold * (1 - self.relax * (1 - self._share(view)))
        return Decision(candidates.confidence >= least[:, None])

    def _share(self, view: View) -> Tensor:
        """Returns the share of masks of what a pass sees from the block on, (B,) float64."""
        inside = view.block & (view.columns < view.length[:, None])
        end = view.columns.masked_fill(~inside, 0).amax(1) + 1
        behind = (view.length - end).clamp(min=0, max=self.window + 1)
        share = (view.left.sum(1) + behind).double() / (inside.sum(1) + behind).clamp(min=1)
        return share.masked_fill(view.fresh, 1)
