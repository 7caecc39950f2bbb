"""Along which loops of a tile the states of a reduction vary.

A nest keeps all components of a state for every result. Where a component is the same along a loop
(the maximum and the total of a softmax, for all columns of what it weighs), its block needs no
dimension for it.
"""

from __future__ import annotations

from nestor.codegen.triton.blocks import Context
from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, Index, Load, Var, walk
from nestor.ir.loopnest import Compute


def narrow_states(ctx: Context, update: Compute) -> None:
    """Leave out dimensions of the states of ``update`` along which nothing changes them."""
    monoid = update.monoid
    registers = [ctx.registers.get(s.target) for s in update.stores]
    if monoid is None or any(r is None for r in registers):
        return
    varies = [expression_loops(v) for v in update.values]
    for _ in varies:  # what a component is made of may change through another one
        for c, combine in enumerate(monoid.combine):
            used = {int(n.name[1:]) for n in walk(combine) if isinstance(n, Var)}
            varies[c] = varies[c].union(*(varies[u] for u in used))
    if monoid.name != "online_softmax":  # elsewhere components are combined as blocks of one shape
        varies = [frozenset[str]().union(*varies)] * len(varies)
    for register, store, loops in zip(registers, update.stores, varies):
        assert register is not None
        register.places = tuple(
            d
            for d in register.places
            if not isinstance(index := store.indices[d], Affine) or index.variables() & loops
        )


def expression_loops(expr: Expr) -> frozenset[str]:
    """Names of the loops that an expression's value depends on."""
    found: set[str] = set()
    for node in walk(expr):
        if isinstance(node, Index):
            found |= node.value.variables()
        elif isinstance(node, Load):
            for index in node.indices:
                if isinstance(index, Affine):
                    found |= index.variables()
            for p in node.predicate:
                found |= p.variables()
    return frozenset(found)
