"""Schedule steps as a person types them: ``Tile(loop='i', size=8)``, the inverse of ``repr``."""

from __future__ import annotations

import ast
import difflib
import typing
from dataclasses import fields
from typing import Any, Literal

from nestor.errors import UserError
from nestor.ir.schedule import STEPS, Arrange, Step

TYPED_STEPS = tuple(name for name, cls in STEPS.items() if cls is not Arrange)
"""Steps that fit on a line; a tree comes from a file."""


def parse_step(text: str) -> Step:
    """The step that ``text`` writes down; nothing of it is run.

    Raises: ``UserError`` naming what is wrong and what would be right.
    """
    name, given = _call(text)
    if name not in TYPED_STEPS:
        near = difflib.get_close_matches(name, TYPED_STEPS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TYPED_STEPS)}"
        raise UserError(f"step {text!r}: no step is called '{name}'; {hint}")
    cls = STEPS[name]
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in fields(cls)}
    needed = {f.name for f in fields(cls) if f.default is f.default_factory}
    unknown, missing = sorted(given.keys() - known.keys()), sorted(needed - given.keys())
    if unknown or missing:
        wrong = f"has no '{unknown[0]}'" if unknown else f"needs '{missing[0]}'"
        raise UserError(f"step {text!r}: {name} {wrong}; write it as {_form(name, known)}")
    for key, value in given.items():
        if not _fits(value, known[key]):
            wanted = _about(known[key])
            raise UserError(f"step {text!r}: {key} is {value!r}, and must be {wanted}")
    step: Step = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    return step


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and keywords of a call of literals."""
    example = "write it as a call, like Tile(loop='i', size=8)"
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise UserError(f"{text!r} is not a step; {example}")
        if node.args or any(k.arg is None for k in node.keywords):
            raise UserError(f"step {text!r}: name every argument; {example}")
        return node.func.id, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UserError(f"{text!r} is not a step; {example}") from None


def _fits(value: object, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return isinstance(value, (tuple, list)) and all(type(v) is inner for v in value)
    return type(value) is hint


def _about(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        several = "texts" if typing.get_args(hint)[0] is str else "whole numbers"
        return f"a tuple of {several}"
    return "a text" if hint is str else "a whole number"


def _form(name: str, known: dict[str, Any]) -> str:
    examples = {str: "'…'", int: "8"}
    parts = []
    for key, hint in known.items():
        if typing.get_origin(hint) is Literal:
            parts.append(f"{key}={typing.get_args(hint)[0]!r}")
        elif typing.get_origin(hint) is tuple:
            parts.append(f"{key}=({examples[typing.get_args(hint)[0]]}, …)")
        else:
            parts.append(f"{key}={examples[hint]}")
    return f"{name}({', '.join(parts)})"
