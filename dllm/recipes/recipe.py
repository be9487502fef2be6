"""A recipe: settings for one model and task, the figures of unseen problems, and what was left out.

It knows its model by the weights: under the same name another checkpoint is refused.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

from dllm.models.digest import weights_digest
from dllm.models.model import DenoisingModel
from dllm.options import Options, shown
from dllm.reading import parse_json
from dllm.registry import nearest
from dllm.settings import Settings

FORMAT = 1  # of the file
OWN = "own"  # names the recipe that lies in the checkpoint's folder
Given: TypeAlias = "str | PathLike[str] | Mapping[str, Any] | Recipe"

_LOG = logging.getLogger(__name__)
_WAY_OUT = "`dllm tune` finds one for it"


@dataclass(frozen=True)
class Recipe(Options):
    """What `dllm tune` found; everything but `settings` says how far it can be believed."""

    format: int
    version: str  # of dllm
    model: str
    weights: str | None  # digest; None: what was wrapped is no module
    task: str
    settings: Mapping[str, Any]  # as `dllm.Settings.from_json` reads them
    cost: str  # what was to be low
    floor: str | None  # below which accuracy was not to fall
    measured: Mapping[str, Any]  # on problems that nothing was tuned on
    tuned: Mapping[str, Any]  # on which problems, with how much work
    confirmed: Mapping[str, Any]  # on fresh problems, by which it was named
    not_tried: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(
                f"format={self.format} is not the format {FORMAT} of this version of dllm: "
                "tune again, or use the version that wrote it"
            )
        Settings.from_json(self.settings)

    def to_json(self) -> str:
        """Returns the text of a recipe file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def check(self, model: DenoisingModel) -> None:
        """Raises ValueError for another model than the recipe's; another version is a warning."""
        if self.weights is None or self.weights != weights_digest(model):
            raise ValueError(
                f"recipe is of the model {self.model!r} (weights {self.weights}), not of "
                f"{model.name!r} (weights {weights_digest(model)}): {_WAY_OUT}"
            )
        # The front door has the version, and stands above this room.
        version = sys.modules["dllm"].__version__
        if version != self.version:
            _LOG.warning(
                "the recipe was found with dllm %s, this is %s: its figures may have changed",
                *(self.version, version),
            )


def read_recipe(given: Given, model: DenoisingModel | None = None) -> Recipe:
    """Returns a recipe from a file, or of a mapping.

    "own" is that of `model`, which lies in its folder as recipe.json. Raises ValueError that names
    what is wrong with it.
    """
    if isinstance(given, Recipe):
        return given
    if given == OWN:
        named: Any = getattr(model, "recipe", None)
        if named is None:
            of = "the model" if model is None else repr(model.name)
            raise ValueError(f"recipe={OWN!r}: {of} comes with no recipe.json: {_WAY_OUT}")
        return _made(named, f"recipe.json of {model.name!r}" if model else OWN)
    if isinstance(given, Mapping):
        return _made(given, "recipe")
    name = fspath(given)
    path = Path(name)
    if path.is_dir():
        raise ValueError(f"recipe {name!r} is a folder: name the recipe.json in it")
    if not path.is_file():
        raise ValueError(
            f"recipe {name!r} is no file: `dllm tune` writes one, and {OWN!r} is the checkpoint's"
        )
    return _made(parse_json(path.read_bytes(), path), str(path))


def recipe_settings(given: Given, model: DenoisingModel) -> Mapping[str, Any]:
    """Returns the settings of a recipe by name, once it is known to be of the model."""
    recipe = read_recipe(given, model)
    recipe.check(model)
    return recipe.settings


def _made(named: Any, where: str) -> Recipe:
    if not isinstance(named, Mapping):
        raise ValueError(f"{where} holds {shown(named)}, and a recipe is an object")
    known = {field.name for field in fields(Recipe) if field.default is MISSING}
    if missing := known - set(named):
        raise ValueError(f"{where} is no recipe: it lacks {', '.join(sorted(missing))}")
    if more := set(named) - known:
        raise ValueError(f"{where} is no recipe: {nearest(min(more), sorted(known))}")
    try:
        return Recipe(**named)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
