"""Names of classes in drawings, whose font has the letters of most alphabets, but not Chinese, Japanese or Korean.

What it lacks would be drawn as one and the same empty box for every class, and matplotlib would warn of each letter.
"""

from __future__ import annotations

import logging
import unicodedata
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
_WITHOUT_GLYPH = ("Cf", "Mn", "Zs")  # joiners, accents of their own, spaces: nothing is missing where a font has none
logger = logging.getLogger(__name__)


def drawable(text: str, label: int) -> str:
    """Return a class's text for a drawing: as it is, or with the label for each part that `FONT` has no letters for."""
    parts = [(c if _has_glyph(c) else None) for c in text]
    if None not in parts:
        return text
    _say_numbered()
    kept = [c for c, before in zip(parts, ["", *parts], strict=False) if c is not None or before is not None]
    return "".join(f"#{label}" if c is None else c for c in kept)


@cache
def _has_glyph(character: str) -> bool:
    return ord(character) in _glyphs() or unicodedata.category(character) in _WITHOUT_GLYPH


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(str(FONT)).get_charmap())


@cache
def _say_numbered() -> None:
    logger.warning("names of classes in letters that %s lacks are drawn as #LABEL", FONT.stem)
