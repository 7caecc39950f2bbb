"""The arguments of ``nestor cache``; loads nothing but ``argparse``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Add = Callable[[Any, str, str, str], argparse.ArgumentParser]
"""Adds a subcommand: commands, name, what it does, example."""


def add_cache_commands(commands: Any, add: Add, model_help: str) -> None:
    """Add ``info``, ``ls``, ``show``, …; ``add`` is how the ``nestor`` command adds its own."""
    add(commands, "info", "show where objects and records lie, and how many", "nestor cache info")
    parser = add(commands, "ls", "list the kernels that have records", "nestor cache ls")
    parser.add_argument("--limit", type=int, default=50, help="newest kernels (default: 50)")
    parser = add(commands, "show", "show a kernel and its records", "nestor cache show 3f2a")
    parser.add_argument("kernel", metavar="KERNEL", help="digest, or the beginning of one")
    parser.add_argument("--limit", type=int, default=20, help="best records (default: 20)")
    parser = add(
        commands,
        "why",
        "explain for each kernel of a model which record serves it, or what is missing",
        "nestor cache why net.py:make",
    )
    parser.add_argument("model", metavar="MODEL", help=model_help)
    parser.add_argument("--target", help="CPU to ask for (default: native, this machine's)")
    parser.add_argument("--threads", help="threads of a call (default: one a core)")
    parser = add(
        commands,
        "report",
        "write plots of what was tried for a model's kernels, and what was found",
        "nestor cache report net.py:make report.html",
    )
    parser.add_argument("model", metavar="MODEL", help=model_help)
    parser.add_argument("file", metavar="FILE.html", help="to write")
    parser.add_argument("--target", help="CPU to ask for (default: native, this machine's)")
    parser.add_argument("--threads", help="threads of a call (default: one a core)")
    parser = add(
        commands,
        "export",
        "write all records to one file, as data that runs nothing",
        "nestor cache export records.jsonl.gz",
    )
    parser.add_argument("file", metavar="FILE", help="to write")
    parser = add(
        commands,
        "import",
        "add the records of an exported file",
        "nestor cache import records.jsonl.gz",
    )
    parser.add_argument("file", metavar="FILE", help="written by nestor cache export")
    parser = add(
        commands,
        "merge",
        "add the records of another database",
        "nestor cache merge sqlite:////data/other/records.db",
    )
    parser.add_argument("database", metavar="DATABASE", help="its URL or its path")
    parser = add(
        commands,
        "prune",
        "remove old records but for the best",
        "nestor cache prune --older-than 90d --keep-best 3",
    )
    parser.add_argument("--older-than", required=True, metavar="AGE", help="like 12h, 90d or 8w")
    parser.add_argument(
        "--keep-best",
        type=int,
        default=3,
        metavar="N",
        help="schedules to keep of each kernel, target and thread count (default: 3)",
    )
    add(commands, "verify", "check every page, record and digest", "nestor cache verify")
