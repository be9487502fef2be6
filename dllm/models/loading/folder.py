"""Where a checkpoint is: a folder, or a repository of the hub that is downloaded into one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub  # its functions are imported when they are used

from dllm.models.config import CheckpointError
from dllm.models.diffusion_gemma import is_diffusion_gemma
from dllm.models.families import find_family
from dllm.models.loading.files import check_files, check_gguf, read_json
from dllm.models.loading.quantised import read_rounding

EMBEDDED = Path(__file__).parents[2] / "tiny" / "checkpoint"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")

# Never pickles, never code.
DOWNLOADED = ("*.safetensors", "*.json", "merges.txt", "*.jinja")
TOKENIZER = ("*.json", "merges.txt", "*.jinja")

CONFIG = "config.json"


@dataclass(frozen=True)
class Source:
    """Where in the hub a checkpoint is looked up, in the words of transformers."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    subfolder: str = ""  # of a hub's repository or of a folder

    def __post_init__(self) -> None:
        path = PurePosixPath(self.subfolder)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"subfolder={self.subfolder!r} must lie inside the checkpoint")

    @property
    def options(self) -> dict[str, Any]:
        """What the functions of the hub take."""
        return {
            "revision": self.revision,
            "token": self.token,
            "cache_dir": self.cache_dir,
            "local_files_only": self.local_files_only,
        }


def find_folder(name: str, source: Source, files: Sequence[str] = DOWNLOADED) -> Path:
    """Returns the folder of "tiny", of a path, or of a hub id, of which `files` are downloaded."""
    folder = EMBEDDED if name == "tiny" else Path(name).expanduser()
    if name == "tiny" and not folder.is_dir():
        raise CheckpointError(f"the embedded model is missing: there is no folder {folder}")
    try:
        if folder.is_file():
            check_gguf(folder)
            raise CheckpointError(f"{folder} is a file; give the folder that holds it")
    except OSError as error:  # a name too long, a folder that this user may not enter
        raise CheckpointError(f"{name!r} cannot be looked at: {error.strerror}") from error
    if folder.is_dir():
        if source.revision is not None:
            raise ValueError(
                f"revision={source.revision!r} is for hub ids, and {name!r} is a folder"
            )
        return folder
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is not an existing folder, nor a hub id (owner/name), nor 'tiny'"
        )
    return _download(name, source, files)


def _download(name: str, source: Source, files: Sequence[str]) -> Path:
    """Returns the local copy of a hub repository, checking its family before its weights come."""
    inside, options = source.subfolder, source.options
    try:
        if files is DOWNLOADED:
            path = huggingface_hub.hf_hub_download(
                name, CONFIG, subfolder=inside or None, **options
            )
            config = read_config(Path(path).parent)
            if not is_diffusion_gemma(config):
                find_family(config)
        patterns = [f"{inside}/{file}" if inside else file for file in files]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, **options))
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # the hub's errors: no network, no such id, not allowed
        raise CheckpointError(
            f"there is no folder {name!r}, and downloading it from the hub failed: {error}. "
            "Without a network, download the folder elsewhere and give its path"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the config.json of a folder; one that others quantised is refused."""
    check_files(folder)
    config = read_json(folder / CONFIG)
    read_rounding(config, folder)
    return config
