"""The source of a function as a syntax tree, and errors that point into it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestor.errors import Unsupported, UserError


@dataclass(frozen=True, slots=True)
class Source:
    """A function's text and tree.

    Attributes:
        name: of the function.
        file: where it is from, as Python tells.
        lines: text of the definition, as written; the first has the number ``first_line``.
        indent: columns that were cut off before parsing.
        tree: the definition; line numbers are the file's.
        names: what global and enclosing names mean.
    """

    name: str
    file: str
    lines: tuple[str, ...]
    first_line: int
    indent: int
    tree: ast.FunctionDef
    names: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The definition without its indentation."""
        return textwrap.dedent("\n".join(self.lines))

    def place(self, node: ast.AST) -> str:
        """``FILE:LINE`` of ``node``; the file without its folder."""
        return f"{Path(self.file).name}:{self.line_of(node)}"

    def line_of(self, node: ast.AST) -> int:
        """Line number of ``node`` in the file."""
        return int(getattr(node, "lineno", self.tree.lineno))

    def excerpt(self, node: ast.AST) -> str:
        """The line of ``node`` and a caret line under it."""
        number = self.line_of(node)
        line = self.lines[number - self.first_line].rstrip()
        start = getattr(node, "col_offset", 0) + self.indent
        is_one_line = getattr(node, "end_lineno", number) == number
        end = getattr(node, "end_col_offset", 0) + self.indent if is_one_line else len(line)
        # Columns of the tree count bytes of UTF-8.
        data = line.encode()
        before, under = (
            data[:start].decode(errors="ignore"),
            data[start:end].decode(errors="ignore"),
        )
        carets = " " * len(before) + "^" * max(1, len(under.rstrip()))
        cut = len(line) - len(line.lstrip())
        return f"    {line[cut:]}\n    {carets[min(cut, len(before)) :]}"

    def unsupported(self, node: ast.AST, problem: str, instead: str) -> Unsupported:
        """The error that points at ``node``; to be raised."""
        return Unsupported(self._message(node, problem, instead))

    def wrong(self, node: ast.AST, problem: str, instead: str) -> UserError:
        """As ``unsupported``, for what is wrong rather than missing."""
        return UserError(self._message(node, problem, instead))

    def _message(self, node: ast.AST, problem: str, instead: str) -> str:
        return (
            f"{self.place(node)}: kernel '{self.name}': {problem}\n"
            f"{self.excerpt(node)}\n  fix: {instead}"
        )


def read_source(function: Callable[..., Any]) -> Source:
    """Find and parse the definition of ``function``.

    Raises: ``UserError`` if it is no plain function or its source cannot be found.
    """
    if not inspect.isfunction(function):
        raise UserError(f"@nestor.kernel is for functions, not for {function!r}")
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        raise UserError(
            f"kernel '{function.__name__}': its source cannot be read (typed at a prompt, or made "
            "by exec); write it into a file"
        ) from None
    text = "".join(lines)
    plain = textwrap.dedent(text)
    indent = len(text.split("\n", 1)[0]) - len(plain.split("\n", 1)[0])
    module = ast.parse(plain)
    tree = module.body[0] if module.body else None
    if not isinstance(tree, ast.FunctionDef):
        raise UserError(f"kernel '{function.__name__}': write it as a plain `def`, not a lambda")
    ast.increment_lineno(module, first - 1)
    closure = inspect.getclosurevars(function)
    names = {**vars(__import__("builtins")), **function.__globals__, **closure.nonlocals}
    file = inspect.getsourcefile(function) or function.__code__.co_filename
    return Source(
        name=function.__name__,
        file=file,
        lines=tuple(text.rstrip("\n").split("\n")),
        first_line=first,
        indent=indent,
        tree=tree,
        names=names,
    )
