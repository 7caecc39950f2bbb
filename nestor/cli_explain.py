"""``nestor explain``: what is done to a loop kernel, and why."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.cli_models import load_object
from nestor.cli_progress import status
from nestor.config import Config
from nestor.errors import IRError, OutputError, UserError

if TYPE_CHECKING:
    from nestor.explaining import Explanation
    from nestor.ir.schedule import Schedule
    from nestor.loop_kernel import Kernel


def explain_command(given: argparse.Namespace, config: Config) -> int:
    """Explain a kernel; draw it if asked."""
    from nestor.explaining import explain_kernel
    from nestor.step_text import parse_step
    from nestor.target.cpu import parse_target

    attempts = [parse_step(text) for text in given.attempts]
    sizes = parse_sizes("--sizes", given.sizes)
    picture_sizes = parse_sizes("--picture-sizes", given.picture_sizes)
    if given.as_written and given.schedule:
        raise UserError("--schedule and --as-written exclude each other")
    schedule: Schedule | None = () if given.as_written else None
    if given.schedule:
        schedule = read_schedule(given.schedule)
    if given.lines < 0:
        raise UserError(f"--lines {given.lines} is not at least 0")
    _check_picture(given)
    kernel = load_kernel(given.kernel)
    target = parse_target(config.target)
    with status(f"explaining {kernel.name}"):
        explanation = explain_kernel(
            kernel,
            target,
            sizes=sizes,
            reassociate=True if given.reassociate else None,
            schedule=schedule,
            attempts=attempts,
        )
    if given.picture:
        _write_picture(given, explanation, picture_sizes)
    if given.json:
        print(json.dumps(explanation.to_dict() | {"picture": given.picture}))
        return 0
    from nestor.explaining_text import explanation_text

    print(explanation_text(explanation, lines=given.lines, color=sys.stdout.isatty()))
    if given.picture:
        print(f"\nwrote {given.picture}")
    return 0


def load_kernel(spec: str) -> Kernel:
    """The ``@nestor.kernel`` that ``spec`` names. Raises: UserError if there is none."""
    found = load_object(spec, "a kernel", "FILE.py:function or package.module:function")
    if not hasattr(found, "__nestor_kernel__"):
        kind = "a class" if isinstance(found, type) else f"a {type(found).__name__}"
        raise UserError(
            f"{spec} is {kind}, not a kernel\n"
            "  fix: put @nestor.kernel above the function, or name one that has it"
        )
    kernel: Kernel = found
    return kernel


def parse_sizes(option: str, text: str | None) -> dict[str, int]:
    """``N=1000,M=800`` → ``{"N": 1000, "M": 800}``. Raises: UserError for anything else."""
    sizes: dict[str, int] = {}
    for part in (text or "").split(",") if text else ():
        name, _, value = (p.strip() for p in part.partition("="))
        if not name or not value.isdecimal():
            raise UserError(f"{option}: {part!r} is not a size; give NAME=NUMBER, like N=1000")
        if name in sizes:
            raise UserError(f"{option}: {name} is given twice")
        sizes[name] = int(value)
    return sizes


def read_schedule(file: str) -> Schedule:
    """Steps from JSON: a list of them, or what ``--json`` printed. Raises: UserError."""
    from nestor.ir.schedule import schedule_from_json

    try:
        data: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--schedule: no file {file!r}") from None
    except OSError as error:
        raise UserError(f"--schedule: cannot read {file!r}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--schedule: {file!r} is not JSON: {error}") from None
    steps = data.get("schedule") if isinstance(data, dict) else data
    if not isinstance(steps, Sequence) or not all(isinstance(s, dict) for s in steps):
        raise UserError(
            f"--schedule: {file!r} holds no list of steps, like "
            '[{"step": "Tile", "loop": "i", "size": 8}]'
        )
    try:
        return schedule_from_json(list(steps))
    except (IRError, TypeError) as error:
        raise UserError(f"--schedule: {file!r}: {error}") from None


def _check_picture(given: argparse.Namespace) -> None:
    """Refuse a picture that cannot be written before any work is done."""
    if not given.picture:
        wrong = "--statement" if given.statement else "--picture-sizes"
        if given.statement or given.picture_sizes:
            raise UserError(f"{wrong} is for --picture FILE.svg")
        return
    path = Path(given.picture)
    if path.suffix != ".svg":
        raise UserError(f"--picture {given.picture!r} must end in .svg")
    if not path.absolute().parent.is_dir():
        raise OutputError(
            f"cannot write {given.picture!r}: no folder {str(path.absolute().parent)!r}"
        )


def _write_picture(
    given: argparse.Namespace, explanation: Explanation, sizes: dict[str, int]
) -> None:
    from nestor.picture import picture_of
    from nestor.picture_svg import svg_text

    picture = picture_of(
        explanation.program, explanation.schedule, statement=given.statement, sizes=sizes
    )
    try:
        Path(given.picture).write_text(svg_text(picture), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {given.picture!r}: {error.strerror}") from error
