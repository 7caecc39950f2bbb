"""Give schedule steps their meaning: ``apply_schedule(kernel, schedule) -> LoopNest``.

Every statement starts as one perfect nest of its own loops. Steps split, order, share and annotate
loops; then one recursive walk writes the tree. Where the first reduced loop of a reduction opens,
the walk puts the accumulator, its initialisation before and its final map after the loop. Tails of
tiled loops become copies of the body with exact extents (``nest_builder``), so that inner loops
carry no guard. Nothing here proves anything: the polyhedral checker judges the nest that results.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nestor.errors import UserError
from nestor.ir.affine import Affine, affine, variable
from nestor.ir.loopnest import LoopKind, LoopNest
from nestor.ir.program import Extern, Kernel, Layout, Statement, Tensor
from nestor.ir.schedule import (
    Accumulate,
    Arrange,
    Bind,
    BlockReduction,
    Collapse,
    ComputeAt,
    Fuse,
    Pack,
    Parallel,
    PredicatedTile,
    Reorder,
    Schedule,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
    Warps,
)


@dataclass(slots=True)
class LoopInfo:
    """One loop while steps are applied.

    ``extent`` is over domain indices and symbols for a root loop; None for a tile's halves, whose
    extents follow from ``parent`` and ``size``. ``tiled`` loops are virtual: their halves run.
    ``lanes``: of a split reduction. ``blocks``: each iteration sums apart (``BlockReduction``).
    ``predicated``: the last tile is as large as the others, and tests its indices.
    """

    name: str
    extent: Affine | None
    kind: LoopKind = "serial"
    parent: str | None = None
    half: str = ""
    size: int = 0
    tiled: bool = False
    lanes: bool = False
    blocks: bool = False
    predicated: bool = False


@dataclass(slots=True)
class StatementState:
    """A statement's loops, outermost first, and its indices in terms of loops."""

    statement: Statement
    loops: list[str]
    index_map: dict[str, Affine]
    reduced: set[str]
    scope: str = "local"


@dataclass(slots=True)
class ScheduleState:
    """Everything the steps have decided so far."""

    kernel: Kernel
    loops: dict[str, LoopInfo] = field(default_factory=dict)
    statements: dict[str, StatementState] = field(default_factory=dict)
    compute_at: dict[str, str] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def find_loop(self, name: str, step: Step) -> LoopInfo:
        """The loop called ``name`` (following fusions). Raises: ``UserError`` if there is none."""
        name = self.renamed.get(name, name)
        if name not in self.loops:
            raise UserError(
                f"{step}: kernel '{self.kernel.name}' has no loop '{name}'; "
                f"its loops are {', '.join(n for n, i in self.loops.items() if not i.tiled)}"
            )
        return self.loops[name]

    def users(self, loop: str) -> list[StatementState]:
        """Statements that run inside ``loop``."""
        return [s for s in self.statements.values() if loop in s.loops]


def apply_schedule(kernel: Kernel, schedule: Schedule) -> LoopNest:
    """Turn a kernel into an explicit loop nest as the steps say.

    Args: kernel: a verified Program without ``Extern``. schedule: steps, applied in order.
    Raises: ``UserError`` for a step that names nothing or cannot be applied as written. Whether the
        result still computes the kernel is for ``passes.polyhedral.check_nest`` to say.
    """
    from nestor.passes.nest_builder import build_nest

    if is_arranged(schedule):
        from nestor.passes.polyhedral.affine_nest import build_affine_nest

        return build_affine_nest(kernel, schedule)
    state = initial_state(kernel)
    for step in schedule:
        apply_step(state, step)
    return build_nest(state)


def is_arranged(schedule: Schedule) -> bool:
    """Whether ``schedule`` speaks about a schedule tree: it starts with ``Arrange``."""
    return bool(schedule) and isinstance(schedule[0], Arrange)


def initial_state(kernel: Kernel) -> ScheduleState:
    """One perfect nest a statement; ``seq`` regions share their loops from the start."""
    state = ScheduleState(kernel)
    shared: dict[tuple[object, ...], str] = {}
    for statement in sorted(kernel.statements, key=_position):
        if isinstance(statement, Extern):
            raise UserError(f"kernel '{kernel.name}': extern '{statement.name}' has no loops")
        _add_statement(state, statement, shared)
    return state


def _position(statement: object) -> tuple[int, ...]:
    order = getattr(statement, "order", ())
    return tuple(p for p in order if isinstance(p, int))


def _add_statement(
    state: ScheduleState, statement: Statement, shared: dict[tuple[object, ...], str]
) -> None:
    sequential = [p for p in statement.order if isinstance(p, str)]
    names = sequential + [n for n in statement.domain.names if n not in sequential]
    index_map: dict[str, Affine] = {}
    loops: list[str] = []
    reduced_indices = set(statement.reduction.indices) if statement.reduction else set()
    for position, index in enumerate(names):
        r = statement.domain.range_of(index)
        lower = r.lower.substitute(index_map)
        extent = (r.upper - r.lower).substitute(index_map)
        loop = f"{statement.name}.{index}"
        if position < len(sequential):
            key = tuple(statement.order[: 2 * position + 1])
            loop = shared.setdefault(key, loop)
            known = state.loops.get(loop)
            if known is not None and known.extent != extent:
                raise UserError(
                    f"kernel '{state.kernel.name}': statements of one seq region run over "
                    f"{known.extent} and {extent} iterations of '{index}'"
                )
        state.loops.setdefault(loop, LoopInfo(loop, extent))
        index_map[index] = lower + variable(loop)
        loops.append(loop)
    reduced = {loops[i] for i, n in enumerate(names) if n in reduced_indices}
    state.statements[statement.name] = StatementState(statement, loops, index_map, reduced)


def apply_step(state: ScheduleState, step: Step) -> None:
    """Apply one step to the state. Raises: ``UserError`` if it does not fit."""
    match step:
        case Tile():
            _tile(state, step, step.loop, step.size)
        case PredicatedTile():
            for half in _tile(state, step, step.loop, step.size):
                state.loops[half].predicated = True
        case Collapse():
            _collapse(state, step)
        case Warps():
            _warps(step)
        case SplitReduction():
            _split_reduction(state, step)
        case BlockReduction():
            _block_reduction(state, step)
        case Reorder():
            _reorder(state, step)
        case Fuse():
            _fuse(state, step)
        case Parallel() | Bind() | Vectorize() | Unroll():
            kinds: dict[type, LoopKind] = {
                Parallel: "parallel",
                Bind: "grid",
                Vectorize: "vector",
                Unroll: "unroll",
            }
            info = state.find_loop(step.loop, step)
            if info.tiled:
                raise UserError(f"{step}: '{info.name}' was tiled; name one of its halves")
            info.kind = kinds[type(step)]
        case Accumulate():
            if step.statement not in state.statements:
                raise UserError(f"{step}: no statement is called '{step.statement}'")
            state.statements[step.statement].scope = step.scope
        case ComputeAt():
            if all(t.name != step.tensor or t.role != "temp" for t in state.kernel.tensors):
                raise UserError(f"{step}: '{step.tensor}' is no temp of '{state.kernel.name}'")
            state.compute_at[step.tensor] = step.scope
        case Pack():
            state.layouts[step.tensor] = pack_layout(state.kernel.tensor(step.tensor), step)


def _tile(state: ScheduleState, step: Step, loop: str, size: int) -> tuple[str, str]:
    info = state.find_loop(loop, step)
    if size < 1 or info.tiled:
        reason = "was tiled before" if info.tiled else "needs a size of at least 1"
        raise UserError(f"{step}: loop '{info.name}' {reason}")
    outer, inner = f"{info.name}.o", f"{info.name}.i"
    info.tiled = True
    state.loops[outer] = LoopInfo(outer, None, parent=info.name, half="o", size=size)
    state.loops[inner] = LoopInfo(inner, None, parent=info.name, half="i", size=size)
    replacement = {info.name: variable(outer) * size + variable(inner)}
    for user in state.users(info.name):
        at = user.loops.index(info.name)
        user.loops[at : at + 1] = [outer, inner]
        user.index_map = {k: v.substitute(replacement) for k, v in user.index_map.items()}
        if info.name in user.reduced:
            user.reduced = (user.reduced - {info.name}) | {outer, inner}
    for other in state.loops.values():
        if other.extent is not None:
            other.extent = other.extent.substitute(replacement)
    return outer, inner


def _collapse(state: ScheduleState, step: Collapse) -> None:
    outer, inner = state.find_loop(step.outer, step), state.find_loop(step.inner, step)
    users = state.users(outer.name)
    extent = inner.extent
    if outer.tiled or inner.tiled or outer.extent is None or extent is None:
        raise UserError(f"{step}: a loop that was tiled, or is a tile's, cannot be collapsed")
    if not extent.is_const or extent.const < 1:
        raise UserError(f"{step}: '{inner.name}' runs {extent} times, not a known number of times")
    for user in users:
        at = user.loops.index(outer.name)
        if user.loops[at + 1 : at + 2] != [inner.name]:
            raise UserError(f"{step}: '{inner.name}' is not directly inside '{outer.name}'")
        if (outer.name in user.reduced) != (inner.name in user.reduced):
            raise UserError(f"{step}: one of the loops is reduced, the other is not")
    both = {outer.name, inner.name}
    if users != state.users(inner.name) or any(
        both & info.extent.variables() for info in state.loops.values() if info.extent is not None
    ):
        raise UserError(f"{step}: other loops depend on '{outer.name}' or '{inner.name}'")
    name = f"{outer.name}_{inner.name.split('.', 1)[1]}"
    state.loops[name] = LoopInfo(name, outer.extent * extent.const)
    outer.tiled = inner.tiled = True
    replacement = {
        outer.name: variable(name) // extent.const,
        inner.name: variable(name) % extent.const,
    }
    for user in users:
        at = user.loops.index(outer.name)
        user.loops[at : at + 2] = [name]
        user.index_map = {k: v.substitute(replacement) for k, v in user.index_map.items()}
        if outer.name in user.reduced:
            user.reduced = (user.reduced - both) | {name}


def _warps(step: Warps) -> None:
    if step.count < 1 or step.count > 32 or step.count & (step.count - 1):
        raise UserError(f"{step}: a program has 1, 2, 4, 8, 16 or 32 warps")
    if not 1 <= step.stages <= 16:
        raise UserError(f"{step}: of a loop, 1 to 16 iterations' loads can be under way")
    if not 1 <= step.group <= 1024:
        raise UserError(f"{step}: programs start in groups of 1 to 1024")
    if not 0 <= step.persistent <= 32:
        raise UserError(f"{step}: a processor has 1 to 32 persistent programs, or 0 for none")
    if any(x not in (0, 1) for x in (step.descriptors, step.specialize, step.skip)):
        raise UserError(f"{step}: 'descriptors', 'specialize' and 'skip' are 0 or 1")


def _split_reduction(state: ScheduleState, step: SplitReduction) -> None:
    info = state.find_loop(step.loop, step)
    users = state.users(info.name)
    if not users or any(info.name not in u.reduced for u in users):
        raise UserError(f"{step}: '{info.name}' is not a reduced loop")
    for user in users:
        reduction = user.statement.reduction
        if reduction is None or reduction.scan or reduction.into:
            raise UserError(f"{step}: a scan or an in-place reduction cannot be split")
        if not reduction.monoid.commutative:
            raise UserError(f"{step}: {reduction.monoid.name} does not commute")
    _, inner = _tile(state, step, info.name, step.lanes)
    state.loops[inner].lanes = True
    for user in users:
        user.reduced.discard(inner)


def _block_reduction(state: ScheduleState, step: BlockReduction) -> None:
    info = state.find_loop(step.loop, step)
    users = state.users(info.name)
    if info.tiled or not users or any(info.name not in u.reduced for u in users):
        raise UserError(f"{step}: '{info.name}' is not a reduced loop")
    for user in users:
        reduction = user.statement.reduction
        if reduction is None or reduction.scan or reduction.into:
            raise UserError(f"{step}: a scan or an in-place reduction has no blocks")
    info.blocks = True


def _reorder(state: ScheduleState, step: Reorder) -> None:
    user = state.statements.get(step.statement)
    if user is None:
        raise UserError(f"{step}: no statement is called '{step.statement}'")
    loops = [state.find_loop(name, step).name for name in step.loops]
    if sorted(loops) != sorted(user.loops):
        raise UserError(f"{step}: '{step.statement}' has the loops {', '.join(user.loops)}")
    user.loops = loops


def _fuse(state: ScheduleState, step: Fuse) -> None:
    first, second = state.find_loop(step.first, step), state.find_loop(step.second, step)
    if first.name == second.name:
        return
    if first.tiled or second.tiled or not _same_extent(state, first, second):
        raise UserError(f"{step}: the loops differ in extent, or were tiled")
    for user in state.users(second.name):
        at = user.loops.index(second.name)
        hosts = [h for h in state.users(first.name) if h.loops[:at] == user.loops[:at]]
        if not any(h.loops.index(first.name) == at for h in hosts):
            raise UserError(f"{step}: the loops around '{first.name}' and '{second.name}' differ")
        user.loops[at] = first.name
        replacement = {second.name: variable(first.name)}
        user.index_map = {k: v.substitute(replacement) for k, v in user.index_map.items()}
        if second.name in user.reduced:
            user.reduced = (user.reduced - {second.name}) | {first.name}
    for other in state.loops.values():
        if other.extent is not None:
            other.extent = other.extent.substitute({second.name: variable(first.name)})
    _rename_family(state, second.name, first.name)


def _rename_family(state: ScheduleState, old: str, new: str) -> None:
    """Forget ``old``; loops derived from the same tile now hang under ``new``'s parent."""
    info, target = state.loops[old], state.loops[new]
    state.renamed[old] = new
    if info.parent is not None and info.half == "o" and target.parent is not None:
        sibling = f"{info.parent}.i"
        if sibling in state.loops:
            state.loops[sibling].parent = target.parent
    del state.loops[old]


def _same_extent(state: ScheduleState, a: LoopInfo, b: LoopInfo) -> bool:
    if a.extent is not None or b.extent is not None:
        return a.extent == b.extent
    assert a.parent is not None and b.parent is not None
    if a.half != b.half or a.size != b.size:
        return False
    if a.parent == b.parent:
        return True
    return _same_extent(state, state.loops[a.parent], state.loops[b.parent])


def pack_layout(tensor: Tensor, step: Pack) -> Layout:
    """The blocked layout that a ``Pack`` step names."""
    block_of = dict(zip(step.dims, step.blocks))
    physical: list[Affine] = []
    shape: list[Affine] = []
    for d in step.order:
        index, extent = variable(f"d{d}"), tensor.shape[d]
        block = block_of.get(d, 1)
        physical.append(index // block)
        shape.append((extent + (block - 1)) // block)
    for d in step.dims:
        physical.append(variable(f"d{d}") % block_of[d])
        shape.append(affine(block_of[d]))
    if sorted(step.order) != list(range(len(tensor.shape))):
        raise UserError(f"{step}: order must name each dimension of '{tensor.name}' once")
    return Layout(physical=tuple(physical), shape=tuple(shape))


def nest_tensors(state: ScheduleState) -> tuple[Tensor, ...]:
    """Tensors that memory is passed for: all but the temps kept in buffers; layouts applied."""
    return tuple(
        replace(t, layout=state.layouts[t.name]) if t.name in state.layouts else t
        for t in state.kernel.tensors
        if t.name not in state.compute_at
    )
