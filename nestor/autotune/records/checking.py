"""Strict readers: bounded, typed, and the same whether data comes from us or from a stranger."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import types
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nestor.errors import NestorError
from nestor.ir.schedule import STEPS, Schedule, schedule_from_json
from nestor.ir.schedule_tree import Band, Leaf, Tree

MAX_KERNEL_CHARS = 4 << 20
"""Text of a kernel; those of the benchmark models have about a thousand characters."""
MAX_FACTS_CHARS = 1 << 14
MAX_SCHEDULE_CHARS = 1 << 18
MAX_POINT_CHARS = 1 << 14
MAX_SAMPLES_CHARS = 1 << 17
MAX_DETAIL_CHARS = 4000
MAX_NAME_CHARS = 100
MAX_SAMPLES = 1024
MAX_INT = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_NS = 1e15
"""The longest time that makes sense: more than a week."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BadRecord(ValueError):
    """A record, or a part of one, that breaks a rule; the message says which."""


def digest_of(text: str) -> str:
    """SHA-256 [hex] of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """The one text of plain data: sorted keys, no spaces, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_json(what: str, text: object, limit: int) -> Any:
    """Data of a JSON text of at most ``limit`` characters. Raises: ``BadRecord``."""
    text = check_text(what, text, limit)

    def refuse(word: str) -> Any:
        raise BadRecord(f"{what}: {word} is not a number")

    try:
        return json.loads(text, parse_constant=refuse)
    except BadRecord:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{what} is not JSON: {type(error).__name__}") from None


def check_text(what: str, value: object, limit: int) -> str:
    """``value``, if it is a text that every database can hold. Raises: ``BadRecord``."""
    if not isinstance(value, str):
        raise BadRecord(f"{what} is a {type(value).__name__}, not a text")
    if len(value) > limit:
        raise BadRecord(f"{what} has {len(value)} characters, more than {limit}")
    if "\0" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
        raise BadRecord(f"{what} holds a character that is none")
    return value


def clean_text(text: str, limit: int = MAX_DETAIL_CHARS) -> str:
    """``text`` as ``check_text`` accepts it: odd characters replaced, the middle cut out."""
    text = text.encode("utf-8", "replace").decode("utf-8", "replace").replace("\0", "\ufffd")
    if len(text) <= limit:
        return text
    mark = "\n…\n"
    head = (limit - len(mark)) // 2
    return text[:head] + mark + text[len(text) - (limit - len(mark) - head) :]


def check_digest(what: str, value: object) -> str:
    """``value``, if it is a SHA-256 in hex. Raises: ``BadRecord``."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise BadRecord(f"{what} is not a digest")
    return value


def check_int(what: str, value: object, least: int, most: int = MAX_INT) -> int:
    """``value``, if it is a whole number within bounds. Raises: ``BadRecord``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRecord(f"{what} is not a whole number of {least} to {most}")
    return value


def check_time_ns(what: str, value: object) -> float:
    """``value`` [ns], if it is finite, positive and below ``MAX_NS``. Raises: ``BadRecord``."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadRecord(f"{what} is a {type(value).__name__}, not a time")
    if not (math.isfinite(value) and 0 < value <= MAX_NS):
        raise BadRecord(f"{what} is not a time: {value!r}")
    return float(value)


def check_keys(what: str, value: object, keys: set[str]) -> dict[str, Any]:
    """``value``, if it is an object with exactly these keys. Raises: ``BadRecord``."""
    if not isinstance(value, dict):
        raise BadRecord(f"{what} is a {type(value).__name__}, not an object")
    if set(value) != keys:
        odd = sorted(map(str, set(value) ^ keys))[:4]
        raise BadRecord(f"{what}: missing or unknown {', '.join(o[:40] for o in odd)}")
    return value


# ---------------------------------------------------------------------------------- schedules


def parse_schedule(data: object) -> Schedule:
    """The schedule of JSON data, however it is written. Raises: ``BadRecord``."""
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise BadRecord("a schedule is a list of steps")
    try:
        return check_schedule(schedule_from_json(data))
    except BadRecord:
        raise
    except (NestorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadRecord(f"schedule: {type(error).__name__}: {str(error)[:200]}") from None


def check_written(text: str, data: object) -> None:
    """Raise ``BadRecord`` unless ``data`` is what ``text``, in canonical JSON, stands for.

    The parser of schedules forgives much (further entries, 1 for true): this does not.
    """
    if canonical_json(data) != text:
        raise BadRecord("schedule is not written as schedules are")


def check_schedule(schedule: object) -> Schedule:
    """``schedule``, if each field of each step is of its declared type. Raises: ``BadRecord``."""
    if not isinstance(schedule, tuple):
        raise BadRecord(f"a schedule is a {type(schedule).__name__}, not a tuple of steps")
    for position, step in enumerate(schedule):
        kind: Any = type(step)
        if kind not in STEPS.values():
            raise BadRecord(f"schedule step {position}: {kind.__name__} is no step")
        for name, check in step_checks(kind):
            if not check(getattr(step, name)):
                raise BadRecord(f"schedule step {position}: {kind.__name__}.{name} is wrong")
    return schedule


Check = Callable[[Any], bool]


@functools.cache
def step_checks(step: Any) -> tuple[tuple[str, Check], ...]:
    """For each field of a step class, whether a value is of the field's declared type."""
    hints = get_type_hints(step)
    return tuple((f.name, _type_check(hints[f.name])) for f in fields(step))


def _type_check(hint: Any) -> Check:
    """A check of values against ``hint``. TypeError for a kind of hint that no step had so far."""
    if hint is str:
        return lambda v: type(v) is str and 0 < len(v) <= 1000 and v.isprintable()
    if hint is int:
        return lambda v: type(v) is int and abs(v) <= MAX_INT
    if hint is bool:
        return lambda v: type(v) is bool
    if hint is type(None):
        return lambda v: v is None
    if hint == Tree:
        return _is_tree
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return lambda v: any(type(v) is type(a) and v == a for a in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _type_check(arguments[0])
        return lambda v: type(v) is tuple and all(map(item, v))
    if origin is tuple:
        items = tuple(map(_type_check, arguments))
        return lambda v: (
            type(v) is tuple and len(v) == len(items) and all(c(x) for c, x in zip(items, v))
        )
    if origin in (Union, types.UnionType):
        options = tuple(map(_type_check, arguments))
        return lambda v: any(option(v) for option in options)
    raise TypeError(f"no check for the type {hint}")


def _is_tree(tree: object) -> bool:
    """Whether names in a schedule tree are texts. (The parser saw to the rest.)"""
    match tree:
        case Leaf():
            return type(tree.statement) is str
        case Band():
            return all(type(loop.name) is str for loop in tree.loops) and _is_tree(tree.child)
    children = getattr(tree, "children", None)
    return isinstance(children, tuple) and all(map(_is_tree, children))
