"""JSON → the dataclass that it was written from: hides how each annotation is read back, and that a file may be of an
older version, or of somebody who wrote what he liked.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class Unlike(ValueError):
    """Something is not what its annotation says; the message says where."""


def revive(kind: Any, found: Any, where: str = "") -> Any:
    """What ``dataclasses.asdict`` and JSON made of a dataclass, as that again; what it does not know is passed over.

    Knows dataclasses, NamedTuples, lists, tuples, dicts, literals, unions and plain values. ``where`` names it in the
    message. Raises Unlike when something is missing that has no default, or is of another kind.
    """
    return _revived(kind, found, where)


def _revived(kind: Any, found: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return found
    if origin in (Union, types.UnionType):
        return _one_of(args, found, where)
    if origin is Literal:
        return _checked(found in args, found, found, f"one of {', '.join(map(str, args))}", where)
    if origin is list:
        _checked(isinstance(found, list), found, found, "a list", where)
        return [_revived(args[0], one, f"{where}[{i}]") for i, one in enumerate(found)]
    if origin is tuple:
        each = [args[0]] * len(found) if isinstance(found, list) and args[-1] is ... else list(args)
        _checked(isinstance(found, list) and len(found) == len(each), found, found, f"{len(each)} values", where)
        return tuple(_revived(own, one, f"{where}[{i}]") for i, (own, one) in enumerate(zip(each, found, strict=True)))
    if origin is dict:
        _checked(isinstance(found, dict), found, found, "an object", where)
        return {_key(args[0], key, where): _revived(args[1], one, _in(where, key)) for key, one in found.items()}
    if is_dataclass(kind):
        return _record(kind, found, where)
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple, which JSON has as a list
        hints = get_type_hints(kind)
        right = isinstance(found, list) and len(found) == len(hints)
        _checked(right, found, found, f"{len(hints)} values", where)
        return kind(
            *(_revived(own, one, _in(where, name)) for (name, own), one in zip(hints.items(), found, strict=True))
        )
    return _plain(kind, found, where)


def _record(kind: Any, found: Any, where: str) -> Any:
    _checked(isinstance(found, Mapping), found, found, "an object", where)
    hints, given = get_type_hints(kind), {}
    for field in fields(kind):
        if field.name in found:
            given[field.name] = _revived(hints[field.name], found[field.name], _in(where, field.name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise Unlike(f"it says nothing of {_in(where, field.name)}")
    return kind(**given)


def _one_of(kinds: tuple[Any, ...], found: Any, where: str) -> Any:
    """As the first of the kinds that it can be; the message is of the last."""
    for kind in kinds[:-1]:
        try:
            return _revived(kind, found, where)
        except Unlike:
            continue
    return _revived(kinds[-1], found, where)


def _plain(kind: Any, found: Any, where: str) -> Any:
    if kind is types.NoneType:
        return _checked(found is None, found, found, "null", where)
    if kind is float and isinstance(found, int) and not isinstance(found, bool):
        return float(found)
    return _checked(type(found) is kind, found, found, f"of the kind {kind.__name__}", where)


def _key(kind: Any, key: str, where: str) -> Any:
    """JSON knows no numbers for keys."""
    if kind is int:
        return _checked(key.isdecimal(), int(key) if key.isdecimal() else 0, key, "a number", where)
    return _revived(kind, key, where)


def _checked(right: bool, value: Any, found: Any, wanted: str, where: str) -> Any:
    if not right:
        raise Unlike(f"{where or 'it'} is {str(found)[:40]!r}, but must be {wanted}")
    return value


def _in(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)
