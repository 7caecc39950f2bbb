"""Give each iteration its own copy of an array that carries nothing from one to the next.

``for r: for q: { sum[p] = …; a[r, q, p] = sum[p] }`` uses ``sum`` afresh in every ``(r, q)``. As
``sum'[r, q, p]`` it no longer ties the iterations to one order (array privatisation by expansion).
What the last iteration left is copied back. Source: Feautrier, Array Expansion, ICS 1988.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

# isl's types are opaque to the type checker.
from typing import Any

import islpy as isl

from nestor.ir.affine import ZERO, Affine, affine, variable
from nestor.ir.expr import Expr, Load, loads, map_expr
from nestor.ir.program import (
    Domain,
    Extern,
    IndexRange,
    Program,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.polyhedral.isl_util import IN, OUT, context
from nestor.passes.polyhedral.model import domain_points
from nestor.passes.polyhedral.order_tree import loop_names, program_tree
from nestor.passes.polyhedral.statement_times import TimeLoop, statement_times
from nestor.passes.polyhedral.tree_steps import Arranged

MAX_OPERATIONS = 1_000_000
"""isl's budget for one array; past it the array stays as it is."""


def expand_arrays(program: Program) -> Program:
    """The same program with private copies of arrays that are used afresh in each iteration.

    Legal when: all uses of the array are in the same outer loops, each read gets its value from a
        write of the same iteration of these, and every iteration writes the whole array.
    Made when: some array of the program is as large as the expanded one, so that memory at most
        doubles.
    """
    if any(isinstance(s, Extern) for s in program.statements):
        return program
    for tensor in program.tensors:
        if tensor.role in ("temp", "inout", "output") and tensor.shape and not tensor.alias_of:
            program = _expand(program, tensor)
    return program


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """A statement that touches the array; indices of its reads and writes."""

    statement: Statement
    reads: tuple[tuple[Affine, ...], ...]
    writes: tuple[tuple[Affine, ...], ...]


def _expand(program: Program, tensor: Tensor) -> Program:
    if any(t.alias_of == tensor.name for t in program.tensors):
        return program
    uses = _uses(program, tensor)
    if not uses:
        return program
    for depth in range(len(_common_loops(uses)), 0, -1):
        extents = [_extent(program, uses, k) for k in range(depth)]
        shape = (*(e for e in extents if e is not None), *tensor.shape)
        known = {t.shape for t in program.tensors if t is not tensor}
        if None in extents or shape not in known:
            continue
        if _limited(partial(_is_private, program, tensor, uses, depth)):
            return _with_copies(program, tensor, uses, depth, shape)
    return program


def _uses(program: Program, tensor: Tensor) -> list[_Use] | None:
    """All uses; None if one is not affine, conditional, or of a statement that is not ordered."""
    found = []
    for s in program.statements:
        assert isinstance(s, Statement)
        reads, writes = [], [w.indices for w in s.writes if w.tensor == tensor.name]
        expressions = (*s.elements, *(s.reduction.final if s.reduction else ()))
        for load in (x for e in expressions for x in loads(e)):
            if any(x.tensor == tensor.name for i in load.indices for x in _inner_loads(i)):
                return None
            if load.tensor == tensor.name:
                if load.predicate:
                    return None
                reads.append(load.indices)
        if s.reduction is not None and writes:
            if s.reduction.scan or not s.reduction.into:
                return None
            reads += writes
        if not reads and not writes:
            continue
        if s.scatter or any(not isinstance(i, Affine) for x in (*reads, *writes) for i in x):
            return None
        found.append(_Use(statement=s, reads=tuple(reads), writes=tuple(writes)))  # type: ignore[arg-type]
    return found


def _inner_loads(index: Affine | Expr) -> list[Load]:
    return [] if isinstance(index, Affine) else list(loads(index))


def _common_loops(uses: list[_Use]) -> tuple[str, ...]:
    """Loops around all uses, by the first one's indices; the positions between agree too."""
    orders = [u.statement.order for u in uses]
    shared: list[str] = []
    for k in range(1, min(len(o) for o in orders), 2):
        if any(o[k - 1] != orders[0][k - 1] for o in orders):
            break
        shared.append(str(orders[0][k]))
    return tuple(shared)


def _index(use: _Use, level: int) -> str:
    return str(use.statement.order[2 * level + 1])


def _extent(program: Program, uses: list[_Use], level: int) -> Affine | None:
    """The extent of a common loop that starts at 0 and is the same for all uses."""
    symbols = {s.name for s in program.symbols}
    found = {
        (r.lower, r.upper) for u in uses for r in [u.statement.domain.range_of(_index(u, level))]
    }
    if len(found) != 1:
        return None
    lower, upper = next(iter(found))
    return upper if lower == ZERO and upper.variables() <= symbols else None


def _limited(question: Callable[[], bool]) -> bool:
    """The answer, or False where isl's budget does not suffice."""
    ctx = context()
    ctx.reset_operations()
    ctx.set_max_operations(MAX_OPERATIONS)
    try:
        return question()
    except isl.Error:
        return False
    finally:
        ctx.set_max_operations(0)
        ctx.reset_operations()


def _is_private(program: Program, tensor: Tensor, uses: list[_Use], depth: int) -> bool:
    """Whether values stay within an iteration of the outer ``depth`` loops, which writes all."""
    names = {u.statement.name: f"S{k}" for k, u in enumerate(uses)}
    reads = isl.UnionMap.read_from_str(context(), "{ }")
    writes, schedule = reads, reads
    times = {t.statement.name: t for t in statement_times(program, _as_written(program))}
    longest = max(len(t.entries) for t in times.values())
    for use in uses:
        domain = use.statement.domain
        points = domain_points(program, domain, domain.names)
        name = names[use.statement.name]

        def named(outputs: tuple[Affine, ...], points: Any = points, name: str = name) -> Any:
            return isl.UnionMap.from_map(points.relation(outputs).set_tuple_name(IN, name))

        for index in use.reads:
            reads = reads.union(named(index))
        for index in use.writes:
            writes = writes.union(named(index))
        entries = times[use.statement.name].entries
        row = [e.row if isinstance(e, TimeLoop) else affine(e) for e in entries]
        schedule = schedule.union(named((*row, *([ZERO] * (longest - len(row))))))
    if not any(_covers(program, tensor, use, depth) for use in uses):
        return False
    access = isl.UnionAccessInfo.from_sink(reads).set_must_source(writes)
    flow = access.set_schedule_map(schedule).compute_flow()
    if not flow.get_must_no_source().is_empty():
        return False
    maps: list[Any] = []
    flow.get_must_dependence().foreach_map(maps.append)
    by_name = {names[u.statement.name]: u for u in uses}
    return all(_stays(m, by_name, depth) for m in maps)


def _as_written(program: Program) -> Arranged:
    return Arranged(tree=program_tree(program))


def _stays(dependence: Any, uses: dict[str, _Use], depth: int) -> bool:
    """Whether source and target are in the same iteration of the outer loops."""
    source = uses[dependence.get_tuple_name(IN)].statement
    target = uses[dependence.get_tuple_name(OUT)].statement
    for level in range(depth):
        a = source.domain.names.index(str(source.order[2 * level + 1]))
        b = target.domain.names.index(str(target.order[2 * level + 1]))
        if not dependence.is_equal(dependence.equate(IN, a, OUT, b)):
            return False
    return True


def _covers(program: Program, tensor: Tensor, use: _Use, depth: int) -> bool:
    """Whether the use writes every element in every iteration of the outer loops."""
    domain = use.statement.domain
    points = domain_points(program, domain, domain.names)
    outer = tuple(variable(_index(use, k)) for k in range(depth))
    ranges = tuple(domain.range_of(_index(use, k)) for k in range(depth))
    names = _element_names(program, tensor, domain.names)
    box = Domain(
        ranges=(
            *ranges,
            *(
                IndexRange(name=n, lower=ZERO, upper=e)
                for n, e in zip(names, tensor.shape, strict=True)
            ),
        )
    )
    everything = domain_points(program, box, box.names).domain()
    return any(
        bool(everything.is_subset(points.relation((*outer, *index)).range()))
        for index in use.writes
    )


def _with_copies(
    program: Program, tensor: Tensor, uses: list[_Use], depth: int, shape: tuple[Affine, ...]
) -> Program:
    """Put the expanded array in place, and copy the last iteration's elements back."""
    taken = {t.name for t in program.tensors}
    name = next(n for n in (f"{tensor.name}_{k}" for k in range(len(taken) + 1)) if n not in taken)
    copy = Tensor(name=name, shape=shape, dtype=tensor.dtype, role="temp")
    is_needed = tensor.role != "temp"
    tensors = [t for t in program.tensors if is_needed or t is not tensor] + [copy]
    touched = {u.statement.name: u for u in uses}
    statements = []
    for s in program.statements:
        assert isinstance(s, Statement)
        order = (2 * int(s.order[0]), *s.order[1:])
        s = replace(s, order=order)
        if s.name in touched:
            outer = tuple(variable(_index(touched[s.name], k)) for k in range(depth))
            s = _redirected(s, tensor.name, name, outer)
        statements.append(s)
    if is_needed:
        after = max(int(s.order[0]) for s in statements if s.name in touched) + 1
        names = _element_names(program, tensor)
        own = loop_names([s.name for s in statements]).fresh(f"{name}_last")
        statements.append(_copy_back(tensor, name, shape[:depth], after, own, names))
    return replace(program, tensors=tuple(tensors), statements=tuple(statements))


def _redirected(s: Statement, old: str, new: str, outer: tuple[Affine, ...]) -> Statement:
    def visit(node: Expr) -> Expr:
        if isinstance(node, Load) and node.tensor == old:
            return replace(node, tensor=new, indices=(*outer, *node.indices))
        return node

    writes = tuple(
        Write(tensor=new, indices=(*outer, *w.indices)) if w.tensor == old else w for w in s.writes
    )
    return replace(s, writes=writes, elements=tuple(map_expr(e, visit) for e in s.elements))


def _element_names(program: Program, tensor: Tensor, taken: tuple[str, ...] = ()) -> list[str]:
    """An index for each dimension that is no symbol and not among ``taken``."""
    fresh = loop_names([*taken, *(s.name for s in program.symbols)])
    return [fresh.fresh(f"d{k}") for k in range(len(tensor.shape))]


def _copy_back(
    tensor: Tensor,
    source: str,
    outer: tuple[Affine, ...],
    position: int,
    name: str,
    names: list[str],
) -> Statement:
    """``tensor``'s elements, over ``names``, from the last iteration's copy in ``source``."""
    ranges = tuple(
        IndexRange(name=n, lower=ZERO, upper=e) for n, e in zip(names, tensor.shape, strict=True)
    )
    order: list[int | str] = [position]
    for n in names:
        order += [n, 0]
    index = tuple(variable(n) for n in names)
    last = tuple(e - 1 for e in outer)
    return Statement(
        name=name,
        # Without an iteration the array keeps what it held.
        domain=Domain(ranges=ranges, constraints=last),
        order=tuple(order),
        writes=(Write(tensor=tensor.name, indices=index),),
        elements=(Load(tensor=source, indices=(*last, *index), dtype=tensor.dtype),),
    )
