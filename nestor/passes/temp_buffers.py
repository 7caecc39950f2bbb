"""Place the temps that a schedule keeps in buffers: where each lives, its origin and its shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nestor.errors import UserError
from nestor.ir.affine import ZERO, Affine, Interval, affine, affine_sum
from nestor.ir.expr import IndexExpr, loads
from nestor.ir.loopnest import Buffer
from nestor.passes.nest import ScheduleState, StatementState


@dataclass(frozen=True, slots=True)
class TempBuffer:
    """A kernel temp held in ``buffer``, allocated inside the loops ``path``.

    Cell ``b`` holds the temp's element ``base + b``; ``base`` is over the loops of ``path``.
    """

    buffer: Buffer
    path: tuple[str, ...]
    base: tuple[Affine, ...]
    writer: str


def place_temps(state: ScheduleState, ranges: Mapping[str, Interval]) -> dict[str, TempBuffer]:
    """A ``TempBuffer`` for each temp of a ``ComputeAt`` step.

    Raises: ``UserError`` if its footprint inside the shared loops has no constant bound.
    """
    return {name: _place(state, name, scope, ranges) for name, scope in state.compute_at.items()}


def _place(
    state: ScheduleState, name: str, scope: str, ranges: Mapping[str, Interval]
) -> TempBuffer:
    tensor = state.kernel.tensor(name)
    accesses = list(_accesses(state, name))
    writer = next((u for u, _, is_write in accesses if is_write), None)
    if writer is None:
        raise UserError(f"temp '{name}' of kernel '{state.kernel.name}' is never written")
    path = _shared_path(state, name, [u for u, _, _ in accesses])
    base: list[Affine] = []
    shape: list[Affine] = []
    for d in range(len(tensor.shape)):
        origin, extent = _dimension(state, name, d, accesses, path, ranges)
        base.append(origin)
        shape.append(affine(extent))
    buffer = Buffer(
        name=f"{name}.tile",
        dtype=tensor.dtype,
        shape=tuple(shape),
        scope="register" if scope == "register" else "local",
        holds=name,
    )
    return TempBuffer(buffer, path, tuple(base), writer.statement.name)


def _accesses(
    state: ScheduleState, name: str
) -> Iterator[tuple[StatementState, tuple[IndexExpr, ...], bool]]:
    for user in state.statements.values():
        for write in user.statement.writes:
            if write.tensor == name:
                yield user, write.indices, True
        reduction = user.statement.reduction
        for element in (*user.statement.elements, *(reduction.final if reduction else ())):
            for load in loads(element):
                if load.tensor == name:
                    yield user, load.indices, False


def _shared_path(state: ScheduleState, name: str, users: list[StatementState]) -> tuple[str, ...]:
    """Loops around every user, outermost first; not into vector loops (lanes share a buffer), nor
    into a reduction's for what its result is made of or goes to: that lies outside."""
    outside = [u for u in users if name in _outside(u)]
    path: list[str] = []
    for names in zip(*(u.loops for u in users)):
        if len(set(names)) > 1 or state.loops[names[0]].kind == "vector":
            break
        if any(names[0] in u.reduced for u in outside):
            break
        path.append(names[0])
    return tuple(path)


def _outside(user: StatementState) -> set[str]:
    """Tensors that a statement touches after its reduced loops."""
    reduction = user.statement.reduction
    found = {w.tensor for w in user.statement.writes}
    for final in reduction.final if reduction else ():
        found |= {load.tensor for load in loads(final)}
    return found


def _dimension(
    state: ScheduleState,
    name: str,
    d: int,
    accesses: list[tuple[StatementState, tuple[IndexExpr, ...], bool]],
    path: tuple[str, ...],
    ranges: Mapping[str, Interval],
) -> tuple[Affine, int]:
    """Origin (over ``path``) and extent of dimension ``d`` of the footprint."""
    whole = state.kernel.tensor(name).shape[d]
    unbounded = UserError(
        f"temp '{name}': dimension {d} has no constant bound inside the loops "
        f"{', '.join(path) or '(none)'}; share more loops, or keep it in memory"
    )
    mapped: list[Affine] = []
    for user, indices, _ in accesses:
        index = indices[d]
        if not isinstance(index, Affine):  # a gather may read anything
            if not whole.is_const:
                raise unbounded
            return ZERO, whole.const
        mapped.append(index.substitute(user.index_map))
    base = affine_sum(
        (Affine(((atom, 1),)), c)
        for atom, c in mapped[0].terms
        if (Affine(((atom, 1),))).variables() <= set(path)
    )
    low, high = 0, 0
    for position, m in enumerate(mapped):
        lo, hi = (m - base).simplify(ranges).bounds(ranges)
        if lo is None or hi is None:
            if whole.is_const:
                return ZERO, whole.const  # e.g. read at a row's own number, under a predicate
            raise unbounded
        low, high = (lo, hi) if position == 0 else (min(low, lo), max(high, hi))
    if whole.is_const and high - low + 1 > whole.const:
        return ZERO, whole.const  # predicates keep the accesses inside the tensor
    return base + low, high - low + 1
