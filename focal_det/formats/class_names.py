"""Names of classes, in any language: which can be shown, and which are probably one class spelt in two ways."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

from ..errors import counted, cut, some

CLASS_NAME_RULE = "a class needs a name on one line, without control characters"
_REFUSED = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, separators of lines and paragraphs
_SPELLING = ("L", "M", "N", "S")  # letters, their marks, numbers, symbols: what tells one name from another


def is_class_name(text: str) -> bool:
    """Tell whether a name can be shown: something to see, on one line, no control characters or lone surrogates."""
    # A zero-width joiner (Cf) or a no-break space (Zs) is part of the normal spelling of many languages.
    visible = any(character.isprintable() and not character.isspace() for character in text)
    return visible and not any(unicodedata.category(character) in _REFUSED for character in text)


def alike_names(raw: dict[str, Any]) -> list[str]:
    """Return a note on classes whose names differ in case, spaces, hyphens or Unicode form alone.

    Args:
        raw: a COCO file's contents, whose lists, fields and ids are sound.
    """
    objects = Counter(annotation["category_id"] for annotation in raw["annotations"])
    groups: dict[str, list[str]] = {}
    for category in raw["categories"]:
        number = counted(objects[category["id"]], "object")
        groups.setdefault(_spelling(category["name"]), []).append(f"{cut(category['name'])!r} ({number})")
    alike = [" and ".join(names) for names in groups.values() if len(names) > 1]
    what = "differ only in case, spaces or hyphens and are learnt as different ones; rename them if they are the same"
    return [f"classes {some('', alike)} {what}"] if alike else []


def _spelling(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in plain if unicodedata.category(c)[0] in _SPELLING) or plain
