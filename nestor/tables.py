"""Tables for people: drawn by rich where it is installed, in plain text where it is not.

A machine that only runs artifacts has no rich, and its tables must be readable all the same.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A title, columns and rows of text.

    Attributes:
        title: stands above the table; may be empty.
        columns: headings; a heading that begins with ``>`` is of a column aligned to the right.
        rows: one text per column each.
        caption: a note below the table; may be empty.
    """

    title: str = ""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} in a table of {len(self.columns)}: {row}")

    def __str__(self) -> str:
        return render_tables([self])


def render_tables(tables: Sequence[Table], *, width: int | None = None, color: bool = False) -> str:
    """Draw ``tables``, one below the other.

    Args:
        width: columns of text; None: the terminal's, 100 where there is none.
        color: whether escape codes are wanted.
    """
    width = width or max(60, shutil.get_terminal_size((100, 24)).columns)
    try:
        return _render_rich(tables, width, color)
    except ImportError:
        return "\n\n".join(_render_plain(table) for table in tables)


def print_tables(*tables: Table) -> None:
    """Print ``tables`` to standard output, in colour if it is a terminal."""
    print(render_tables(tables, color=sys.stdout.isatty()))


def _heading(column: str) -> tuple[str, bool]:
    """The heading's text, and whether its column is aligned to the right."""
    return column.removeprefix(">"), column.startswith(">")


def _least_width(table: Table) -> int:
    """Columns of text below which a table could not be read: numbers whole, texts folded."""
    total = 0
    for i, column in enumerate(table.columns):
        text, right = _heading(column)
        natural = max([len(text), *(len(row[i]) for row in table.rows)])
        total += (natural if right else min(natural, 24)) + 3
    return total


def _render_rich(tables: Sequence[Table], width: int, color: bool) -> str:
    from rich import box
    from rich.console import Console, Group
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn: list[Any] = []
    for table in tables:
        rich = RichTable(
            title=Text(table.title, style="bold") if table.title else None,
            title_justify="left",
            caption=Text(table.caption) if table.caption else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_header=any(table.columns),
        )
        for column in table.columns:
            text, right = _heading(column)
            # Numbers are useless when cut, so their columns never fold.
            rich.add_column(Text(text), justify="right" if right else "left", no_wrap=right)
        for row in table.rows:
            rich.add_row(*(Text(cell) for cell in row))
        drawn.append(rich)
    buffer = io.StringIO()
    width = max([width, *(_least_width(table) for table in tables)])
    console = Console(file=buffer, width=width, force_terminal=color, color_system="auto")
    console.print(Group(*drawn))
    text = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _render_plain(table: Table) -> str:
    headings = [_heading(column) for column in table.columns]
    widths = [
        max([len(text), *(len(row[i]) for row in table.rows)])
        for i, (text, _) in enumerate(headings)
    ]

    def line(cells: Sequence[str]) -> str:
        parts = (
            cell.rjust(w) if right else cell.ljust(w)
            for cell, w, (_, right) in zip(cells, widths, headings, strict=True)
        )
        return "  ".join(parts).rstrip()

    lines = [table.title] if table.title else []
    if any(table.columns):
        lines += [line([text for text, _ in headings]), "  ".join("-" * w for w in widths)]
    lines += [line(row) for row in table.rows]
    lines += [table.caption] if table.caption else []
    return "\n".join(lines)


def format_bytes(count: int | None) -> str:
    """A size for people: ``1.5 MiB``; ``–`` for None."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def format_seconds(seconds: float | None) -> str:
    """A duration for people, from nanoseconds to minutes; ``–`` for None."""
    if seconds is None:
        return "–"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {seconds % 60:.0f} s"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"
