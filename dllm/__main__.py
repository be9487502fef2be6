"""`python -m dllm` is the `dllm` command."""

from __future__ import annotations

from dllm.cli import main

if __name__ == "__main__":
    main()
