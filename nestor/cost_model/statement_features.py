"""The block of features of one statement: vectors, registers, loops, working sets, traffic."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2, prod

from nestor.cost_model.footprint import ANYWHERE
from nestor.cost_model.sharing import pages_touched
from nestor.cost_model.statement_profile import (
    StatementProfile,
    conflicting_lines,
    fitting_level,
    stride_at,
)
from nestor.target.cpu import CpuTarget


def log2p(x: float) -> float:
    """``log2(1 + x)``: finite at zero, the logarithm for what is large."""
    return log2(1.0 + max(0.0, x))


def statement_features(
    profile: StatementProfile,
    sizes: Mapping[tuple[str, ...], float],
    traffic: tuple[float, float, float],
    share: float,
    target: CpuTarget,
) -> dict[str, float]:
    """Values by name, as ``feature_table`` lists them (without a prefix).

    Args: sizes: bytes of each working set. traffic: bytes that it brings into the first, second and
        last cache. share: of the kernel's work.
    """
    vector_ops = max(1.0, profile.bodies * profile.body_ops * max(1.0, profile.facts.ops.slots))
    return {
        "share": share,
        **_work(profile),
        **_body(profile, target),
        **_access_kinds(profile),
        **_inner_loops(profile),
        **_sets(profile, sizes, target),
        "l2_per_op": traffic[0] / vector_ops,
        "l3_per_op": traffic[1] / vector_ops,
        "memory_per_op": traffic[2] / vector_ops,
        "conflicts": log2(conflicting_lines(profile)),
        "streams": float(sum(s.where == "memory" for s in profile.streams)),
        "pages_inner": log2p(pages_touched(profile, profile.body - 1, target.line_bytes)),
        "pages_second": log2p(pages_touched(profile, profile.body - 2, target.line_bytes)),
        **_tile(profile),
    }


def _work(p: StatementProfile) -> dict[str, float]:
    facts = p.facts
    return {
        "instances": log2p(facts.instances),
        "slots": facts.ops.slots,
        "reduced": log2p(facts.instances / max(1.0, facts.results)),
        "density": facts.density,
        "depth": float(len(p.levels)),
        "lanes": float(p.lanes),
        "masked": float(any(s.is_masked for s in p.streams)),
    }


def _body(p: StatementProfile, target: CpuTarget) -> dict[str, float]:
    vector = None if p.vector is None else p.levels[p.vector]
    loads = sum(n for _, n in p.body_loads())
    unrolled = [x for x in p.levels[p.body :] if x.kind == "unroll"]
    whole = prod(x.trips for x in unrolled)
    useful = prod(x.count for x in unrolled)
    reduction = p.facts.statement.reduction
    registers = p.accumulators + p.operand_registers
    scope = 0.0 if reduction is None else 2.0 if p.loops.scope == "register" else 1.0
    return {
        "vector_extent": 0.0 if vector is None else log2p(vector.trips),
        "efficiency": p.efficiency,
        "vector_loop_reduced": float(vector is not None and vector.lanes),
        "body_ops": log2p(p.body_ops),
        "body_code": log2p(p.body_ops * p.facts.ops.slots + loads),
        "unrolled_around": log2(
            prod(max(1, x.trips) for x in p.levels[: p.body] if x.kind == "unroll")
        ),
        "unroll_tail": 1.0 - useful / whole if whole else 0.0,
        "accumulators": log2p(p.accumulators),
        "spilled": p.spilled,
        "pressure": min(8.0, registers / target.vector_registers),
        "loads_per_op": loads / max(1.0, p.body_ops * max(1.0, p.facts.ops.slots)),
        "blocked_sum": float(any(x.blocks for x in p.levels)),
        "state_scope": scope,
    }


def _tile(p: StatementProfile) -> dict[str, float]:
    """The body's rows and columns: unrolled loops that move what the vector loop moves are
    columns."""
    columns, rows = float(p.vectors), 1.0
    if p.vector is not None:
        along = {index for index, _ in p.levels[p.vector].advance}
        for level in p.levels[p.body :]:
            if level.kind == "unroll":
                if along & {index for index, _ in level.advance}:
                    columns *= level.trips
                else:
                    rows *= level.trips
    return {"rows": log2(rows), "columns": log2(columns)}


def _access_kinds(p: StatementProfile) -> dict[str, float]:
    """Shares of the body's accesses by how the lanes of a vector find their elements."""
    kinds = dict.fromkeys(("unit", "broadcast", "strided", "gather"), 0.0)
    farthest = 0
    position = len(p.levels) - 1 if p.vector is None else p.vector
    for s in p.streams:
        if s.per_result:
            continue
        stride = stride_at(s, position) if p.levels else 0
        kind = "broadcast" if stride == 0 else "unit" if stride == 1 else "strided"
        if stride == ANYWHERE:
            kind = "gather"
        else:
            farthest = max(farthest, stride * s.size)
        kinds[kind] += s.members
    total = max(1.0, sum(kinds.values()))
    return {**{k: v / total for k, v in kinds.items()}, "first_stride": log2p(farthest)}


def _inner_loops(p: StatementProfile) -> dict[str, float]:
    def trip(position: int) -> float:
        return log2p(p.levels[position].count) if position >= 0 else 0.0

    def stride(position: int) -> float:
        if position < 0:
            return 0.0
        strides = [(stride_at(s, position), s.size) for s in p.streams if not s.per_result]
        return log2p(max((x * size for x, size in strides if x != ANYWHERE), default=0))

    inner = p.body - 1
    return {
        "inner_trip": trip(inner),
        "inner_reduced": float(inner >= 0 and p.levels[inner].reduced),
        "inner_stride": stride(inner),
        "second_trip": trip(inner - 1),
        "second_reduced": float(inner >= 1 and p.levels[inner - 1].reduced),
        "second_stride": stride(inner - 1),
        "third_trip": trip(inner - 2),
    }


def _sets(
    p: StatementProfile, sizes: Mapping[tuple[str, ...], float], target: CpuTarget
) -> dict[str, float]:
    names = tuple(x.name for x in p.levels)

    def size(position: int) -> float:
        return log2p(sizes[names[: max(0, position)]])

    def inside(capacity: float) -> float:
        return log2p(prod(p.counts[fitting_level(p, sizes, capacity) :]))

    return {
        "ws_body": size(p.body),
        "ws_inner": size(p.body - 1),
        "ws_second": size(p.body - 2),
        "ws_third": size(p.body - 3),
        "ws_fourth": size(p.body - 4),
        "fits_l1": inside(target.l1d_bytes),
        "fits_l2": inside(target.l2_bytes),
    }
