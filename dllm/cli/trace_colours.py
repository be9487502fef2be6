"""The colours of a replay in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.style import Style

COLOURS = ("step", "confidence")
DIM = Style(dim=True)
FILLED = Style(dim=True, italic=True)
AGAIN = Style(color="red", bold=True)
HERE = Style(color="blue", bold=True)  # where the row's block begins
UNKNOWN = Style(color="black", bgcolor="white")
NOW: Mapping[str, Style] = {
    "commit": Style(bold=True, underline=True),
    "edit": Style(bold=True, italic=True, underline2=True),
    "remask": Style(reverse=True),
    "fill": Style(),
}
# From early or unsure to late or sure, all light enough for black text on them.
_RAMPS = {
    "step": ((174, 203, 255), (174, 229, 168), (255, 196, 112)),
    "confidence": ((255, 150, 112), (255, 232, 150), (150, 208, 245)),
}
# The same for terminals of 16 colours, which would show most of these as white.
_FEW = {"step": ("cyan", "green", "yellow"), "confidence": ("red", "yellow", "cyan")}
_FEW_SYSTEMS = ("standard", "windows")


def back(colour: str, share: float, system: str) -> Style:
    """Returns the style at a place of a ramp, from 0 to 1, for a colour system of rich."""
    share = min(max(share, 0.0), 1.0)
    if system in _FEW_SYSTEMS:
        return Style(color="black", bgcolor=_FEW[colour][min(int(3 * share), 2)])
    low, middle, high = _RAMPS[colour]
    one, other, at = (low, middle, 2 * share) if share < 0.5 else (middle, high, 2 * share - 1)
    mixed = [round(a + (b - a) * at) for a, b in zip(one, other, strict=True)]
    return Style(color="black", bgcolor="rgb({},{},{})".format(*mixed))
