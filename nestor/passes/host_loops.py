"""Sequential loops of a Program, taken out of its kernels: whoever starts kernels runs them.

The programs of a GPU's kernel do not wait for each other, so what one step of a recurrence leaves
to the next goes from kernel to kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nestor.errors import Unsupported
from nestor.ir.affine import Affine, variable
from nestor.ir.names import Names
from nestor.ir.program import AnyStatement, Domain, Program, Reduction, Statement, Symbol
from nestor.passes.rewriting import (
    first_position,
    in_order,
    is_sequential,
    map_statement_affines,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoop:
    """Statements that run one after the other, again for each value of ``symbol``.

    Attributes: symbol: from 0 on. extent: how many values there are. statements: their names.
    """

    symbol: str
    extent: Affine
    statements: frozenset[str]


def take_out_loops(program: Program) -> tuple[Program, tuple[HostLoop, ...]]:
    """One step of each sequential loop, its index a symbol; and the loops.

    Rewrite: ``seq t: S(t); T(t)`` → ``S(step); T(step)``, to be run for step = 0, 1, ….
    Raises: ``Unsupported`` for a loop within a loop, and where steps are reduced.
    """
    indices = {n for s in program.statements if isinstance(s, Statement) for n in s.domain.names}
    names = Names([*indices, *(s.name for s in program.symbols)])
    symbols: list[Symbol] = []
    loops: dict[int, HostLoop] = {}
    made: list[AnyStatement] = []
    for position, s in enumerate(in_order(program.statements)):
        if not is_sequential(s) or not isinstance(s, Statement):
            made.append(replace(s, order=(position,)))
            continue
        if len(s.order) != 3:
            raise Unsupported(f"'{s.name}' runs in a loop within a loop, one step after the other")
        own = s.domain.range_of(str(s.order[1]))
        extent, region = own.upper - own.lower, first_position(s)
        if region not in loops:
            symbol = names.fresh("step")
            upper = extent.const - 1 if extent.is_const else None
            symbols.append(Symbol(name=symbol, lower=0, upper=upper))
            loops[region] = HostLoop(symbol=symbol, extent=extent, statements=frozenset())
        loop = loops[region]
        if loop.extent != extent:
            raise Unsupported(f"'{s.name}' runs {extent} steps, others beside it {loop.extent}")
        loops[region] = replace(loop, statements=loop.statements | {s.name})
        made.append(_at_step(s, own.name, variable(loop.symbol) + own.lower, position))
    return (
        replace(program, symbols=(*program.symbols, *symbols), statements=tuple(made)),
        tuple(loops.values()),
    )


def _at_step(s: Statement, index: str, value: Affine, position: int) -> Statement:
    """A statement whose loop over ``index`` is somebody else's."""

    def at(a: Affine) -> Affine:
        return a.substitute({index: value})

    domain = Domain(
        ranges=tuple(
            replace(r, lower=at(r.lower), upper=at(r.upper))
            for r in s.domain.ranges
            if r.name != index
        ),
        constraints=tuple(at(c) for c in s.domain.constraints),
    )
    step = replace(s, domain=domain, order=(position,), reduction=_reduce_in_step(s, index))
    return map_statement_affines(step, at)


def _reduce_in_step(s: Statement, index: str) -> Reduction | None:
    """What a step adds to what the steps before it left, if ``index`` itself is reduced."""
    r = s.reduction
    if r is None or index not in r.indices:
        return r
    if r.scan or not r.into or r.indices == (index,):
        raise Unsupported(f"'{s.name}' reduces over the steps of a loop")
    return replace(r, indices=tuple(n for n in r.indices if n != index))
