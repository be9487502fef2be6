"""From the name that a user gives to the folder that holds the checkpoint."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from dllm.models.config import CheckpointError
from dllm.models.families import find_family
from dllm.models.loading.checkpoint import read_config

EMBEDDED = Path(__file__).parents[2] / "tiny" / "checkpoint"

# Never pickles, never code.
DOWNLOADED = ["*.safetensors", "*.json", "merges.txt", "*.jinja"]


def find_folder(name_or_path: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Returns the folder of "tiny", of a path, or of a hub id, which is downloaded."""
    name = os.fspath(name_or_path)
    folder = EMBEDDED if name == "tiny" else Path(name).expanduser()
    if name == "tiny" and not folder.is_dir():
        raise CheckpointError(f"the embedded model is missing: there is no folder {folder}")
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that holds it")
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for hub ids, and {name!r} is a folder")
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise CheckpointError(
            f"{name!r} is not an existing folder, nor a hub id (owner/name), nor 'tiny'"
        )
    return download(name, revision)


def download(name: str, revision: str | None) -> Path:
    """Returns the local copy of a hub repository, checking its family before its weights come."""
    try:
        config = Path(hf_hub_download(name, "config.json", revision=revision))
        find_family(read_config(config.parent))
        return Path(snapshot_download(name, revision=revision, allow_patterns=DOWNLOADED))
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # the hub's errors: no network, no such id, not allowed
        raise CheckpointError(
            f"there is no folder {name!r}, and downloading it from the hub failed: {error}. "
            "Without a network, download the folder elsewhere and give its path"
        ) from error
