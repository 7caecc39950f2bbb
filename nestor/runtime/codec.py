"""Frozen dataclasses ↔ JSON, strictly: every field is checked against its annotation.

Understands ``int``, ``float``, ``str``, ``bool``, ``None``, ``Literal``, unions, ``tuple[X, ...]``,
``dict[str, X]``, ``Any`` (any JSON), dataclasses, classes with their own ``to_json``/``from_json``,
and unions of dataclasses told apart by a constant field ``kind``.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal, TypeVar, Union

from nestor.errors import ArtifactError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """The JSON form of a dataclass, or of a tuple or dict of them."""
    custom = getattr(value, "to_json", None)
    if custom is not None and not isinstance(value, type):
        return custom()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_to_json(value)
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    return value


def fields_to_json(value: Any) -> dict[str, Any]:
    """One entry a field; fields that hold their default are left out (``kind`` is kept)."""
    return {
        f.name: to_json(getattr(value, f.name))
        for f in dataclasses.fields(value)
        if f.name == "kind" or getattr(value, f.name) != f.default
    }


def from_json(cls: type[T], data: Any, where: str) -> T:
    """Build a dataclass from its JSON.

    Args:
        where: what errors call this value, e.g. ``manifest.slots[3]``.

    Raises:
        ArtifactError: a missing, unknown or ill-typed field, or a value that ``cls`` refuses.
    """
    if not isinstance(data, dict):
        raise _wrong(where, "an object", data)
    hints = _hints(typing.cast(Any, cls))
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ArtifactError(f"{where}: unknown field '{unknown[0]}'")
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in data:
            name = field.name
            values[name] = decode(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ArtifactError(f"{where}: field '{field.name}' is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}") from None


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def decode(hint: Any, data: Any, where: str) -> Any:
    """Check ``data`` against a type annotation and convert it; see ``from_json``."""
    if hint is Any:
        return data
    if hint is None or hint is types.NoneType:
        if data is not None:
            raise _wrong(where, "null", data)
        return None
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(typing.get_args(hint), data, where)
    if origin is Literal:
        if data not in typing.get_args(hint) or not isinstance(data, str):
            raise _wrong(where, " or ".join(map(repr, typing.get_args(hint))), data)
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise _wrong(where, "a list", data)
        item = typing.get_args(hint)[0]
        return tuple(decode(item, v, f"{where}[{i}]") for i, v in enumerate(data))
    if origin is dict:
        if not isinstance(data, dict):
            raise _wrong(where, "an object", data)
        item = typing.get_args(hint)[1]
        return {k: decode(item, v, f"{where}.{k}") for k, v in data.items()}
    return _decode_plain(hint, data, where)


def _decode_plain(hint: Any, data: Any, where: str) -> Any:
    if hint is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if hint in (int, str, bool):
        if not isinstance(data, hint) or (hint is int and isinstance(data, bool)):
            raise _wrong(where, {int: "an integer", str: "text", bool: "a bool"}[hint], data)
        return data
    custom = getattr(hint, "from_json", None)
    if custom is not None:
        return custom(data, where)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), data, where)
    raise _wrong(where, str(hint), data)


def _decode_union(members: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and types.NoneType in members:
        return None
    concrete = [m for m in members if m is not types.NoneType]
    if isinstance(data, dict) and "kind" in data:
        for member in concrete:
            if dataclasses.is_dataclass(member):
                kinds = typing.get_args(_hints(typing.cast(type, member)).get("kind"))
                if data["kind"] in kinds:
                    return decode(member, data, where)
        raise ArtifactError(f"{where}.kind: unknown value {data['kind']!r}")
    failure: ArtifactError | None = None
    for member in concrete:
        try:
            return decode(member, data, where)
        except ArtifactError as error:
            failure = error
    raise failure or _wrong(where, "null", data)


def _wrong(where: str, wanted: str, data: Any) -> ArtifactError:
    text = repr(data)
    return ArtifactError(f"{where}: expected {wanted}, found {text[:60]}")
