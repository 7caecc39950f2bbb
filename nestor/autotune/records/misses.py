"""Why there is no record of a kernel: the nearest one, and exactly what differs.

"Nearest" counts what differs: the same kernel measured elsewhere comes before another size of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nestor.autotune.records.checking import check_digest
from nestor.autotune.records.record import (
    CONDEMNED,
    KernelKey,
    Record,
    TargetKey,
    current_generator,
    size_free_tokens,
)
from nestor.autotune.records.rows import RECORD_COLUMNS, read_rows
from nestor.autotune.records.schema import record_table

if TYPE_CHECKING:
    from nestor.autotune.records.store import Records

_MAX_SIZES = 8
_FAMILY = 5
"""How many kernels of the family are looked at, the nearest amount of work first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field: what was asked for, and what the nearest record has."""

    field: str
    wanted: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Whether a kernel has a record that serves, and if not, why.

    Attributes:
        record: the one that serves, else None.
        nearest: else the nearest record, None if there is none of its family.
        differences: what keeps the nearest from serving.
    """

    kernel: KernelKey
    record: Record | None
    nearest: Record | None = None
    differences: tuple[Difference, ...] = ()


def find_difference(
    records: Records,
    kernel: KernelKey,
    target: TargetKey,
    threads: int,
    *,
    generator: str | None = None,
) -> Finding:
    """The best record of ``kernel``, or the nearest and the exact fields that differ.

    Args: generator: None: this Nestor's.
    """
    generator = current_generator() if generator is None else generator
    best = records.best(kernel.digest, target.digest, threads, generator=generator)
    if best is not None:
        return Finding(kernel=kernel, record=best)
    nearest: tuple[tuple[int, int], Record, tuple[Difference, ...]] | None = None
    for place, other in enumerate((kernel, *records.family(kernel)[:_FAMILY])):
        for record in _representatives(records, other.digest):
            differences = tuple(_differences(record, kernel, target, threads, generator))
            rank = len(differences), place
            if nearest is None or rank < nearest[0]:
                nearest = rank, record, differences
        if nearest is not None and place == 0:
            break  # a record of the kernel itself says more than one of another size
    if nearest is None:
        return Finding(kernel=kernel, record=None)
    return Finding(kernel=kernel, record=None, nearest=nearest[1], differences=nearest[2])


def _representatives(records: Records, kernel: str) -> list[Record]:
    """The newest record of each target, thread count, generator and status of a kernel."""
    t = record_table.c
    newest = (
        sa.select(sa.func.max(t.id))
        .where(t.kernel == check_digest("kernel", kernel))
        .group_by(t.target, t.threads, t.generator, t.status)
        .order_by(sa.func.max(t.id).desc())
        .limit(200)
    )
    query = sa.select(*RECORD_COLUMNS).where(t.id.in_(newest)).order_by(t.id.desc())

    def ask(connection: sa.Connection) -> list[Record]:
        return records.sound(connection, read_rows(connection, query))

    return records.reading(ask, [])


def _differences(
    record: Record, kernel: KernelKey, target: TargetKey, threads: int, generator: str
) -> Iterator[Difference]:
    if record.kernel != kernel:
        yield from _size_differences(kernel, record.kernel)
    if record.target != target:
        yield from fact_differences(target, record.target)
    if record.threads != threads:
        yield Difference(field="threads", wanted=str(threads), found=str(record.threads))
    if record.generator != generator:
        yield Difference(field="code generator", wanted=generator, found=record.generator)
    if record.status != "ok":
        yield Difference(field="status", wanted="ok", found=_status(record))
    elif (record.kernel, record.target, record.generator) == (kernel, target, generator):
        if record.threads == threads:
            # It was measured, and yet ``best`` left it out.
            words = " or ".join(CONDEMNED)
            yield Difference(field="status", wanted="ok", found=f"elsewhere found {words}")


def _status(record: Record) -> str:
    line = record.detail.strip().splitlines()[:1]
    return f"{record.status}: {line[0][:120]}" if line else record.status


def fact_differences(wanted: TargetKey, found: TargetKey) -> Iterator[Difference]:
    """The facts in which two targets differ."""
    left, right = dict(wanted.facts), dict(found.facts)
    for name in sorted(left.keys() | right.keys()):
        a: Any = left.get(name, "–")
        b: Any = right.get(name, "–")
        if a == b:
            continue
        if isinstance(a, tuple) and isinstance(b, tuple):
            # Only the entries that the other lacks: feature lists are long.
            a, b = (
                " ".join(f"+{x}" for x in one if x not in other) or "–"
                for one, other in ((a, b), (b, a))
            )
        yield Difference(field=f"target {name}", wanted=str(a), found=str(b))


def _size_differences(wanted: KernelKey, found: KernelKey) -> Iterator[Difference]:
    """The lines of two kernels of a family in which sizes differ; tensors by their names."""
    pairs = list(zip(wanted.text.splitlines(), found.text.splitlines()))
    shown = 0
    for a, b in pairs:
        if a == b:
            continue
        shown += 1
        if shown > _MAX_SIZES:
            left, right = size_free_tokens(wanted.text)[1], size_free_tokens(found.text)[1]
            count = sum(x != y for x, y in zip(left, right))
            yield Difference(field="sizes", wanted=f"{count} numbers differ in all", found="")
            return
        yield Difference(field="size", wanted=a.strip()[:200], found=b.strip()[:200])
