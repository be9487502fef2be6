"""Models, examples and checks that several tests share."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent  # of the repository
DATA = TESTS / "data"
GOLDEN = TESTS / "golden"
