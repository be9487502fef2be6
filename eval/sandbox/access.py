"""Why another user may not run an interpreter."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


def private_to_root(python: str) -> str:
    """Returns what keeps the user that root becomes from an interpreter, with the way out.

    An empty text if nothing does, or if this user is not root and so becomes nobody else.
    """
    if os.geteuid() != 0:
        return ""
    wanted = [python, os.path.realpath(python)]
    if python == sys.executable:
        wanted.append(os.__file__)  # its standard library
    for path in map(Path, wanted):
        for part in (*reversed(path.parents), path):
            if part.exists() and not part.stat().st_mode & _needed(part):
                return (
                    f"root becomes another user to run the code, who may not read {part}: install "
                    "Python and the environment where every user may read them, or start as "
                    "another user than root"
                )
    return ""


def _needed(part: Path) -> int:
    return stat.S_IXOTH if part.is_dir() else stat.S_IROTH
