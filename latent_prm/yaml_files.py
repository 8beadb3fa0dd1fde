"""YAML files that people write: hides how they are read safely, and how what is wrong in one is named."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

SIZE_LIMIT = 2**18
"""Bytes. A larger file is none that anyone wrote."""


def load_yaml(path: Path, what: str, way_out: str) -> Any:
    """The plain values that a file holds. ``what`` it is and the ``way_out`` where it is missing go into errors.

    Raises ValueError for a file that is missing, too large, no YAML in UTF-8, more than plain values, or has a key
    twice.
    """
    if not path.is_file():
        raise ValueError(f"No such {what} file: {path}. {way_out}")
    if (size := path.stat().st_size) > SIZE_LIMIT:
        article = "an" if what[0] in "aeiou" else "a"
        raise ValueError(f"{path}: {size} bytes are too many for {article} {what} ({SIZE_LIMIT} at most).")
    try:
        return yaml.load(path.read_bytes().decode("utf-8-sig"), _OnceLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not readable as YAML in UTF-8 ({reason}).") from None


class _OnceLoader(yaml.SafeLoader):
    """YAML's safe loader, but for a key that is there twice: it would quietly take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if double := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{double!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def keyed(entry: Any, allowed: Collection[str], where: str, way_out: str) -> dict[str, Any]:
    """``entry``, if it is keys and values and has no other keys than these. Raises ValueError otherwise."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: {spell(entry)} is not a list of keys and values. {way_out}")
    for key in entry:
        if key not in allowed:
            choice = f" Type {', '.join(allowed)}." if len(allowed) <= 12 else ""
            raise ValueError(f"{where}: unknown key {spell(key)}{meant(key, allowed)}.{choice}")
    return entry


def spell(value: Any) -> str:
    """Short, however large it is: a few lines of YAML can stand for a list without end."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def meant(word: Any, known: Iterable[str]) -> str:
    """Which of the ``known`` words was meant, as a remark; "" where none is near."""
    close = get_close_matches(str(word)[:100].lower(), list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""
