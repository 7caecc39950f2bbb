"""What follows a window's sum element by element, and where the results go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import Expr, Load, Var, map_expr, substitute_vars
from nestor.ir.program import Program, Statement, Tensor, Write
from nestor.passes.analysis import ProgramFacts, is_functional, is_pointwise, node_count
from nestor.passes.rewriting import map_expressions, map_write, rename_indices
from nestor.passes.winograd_tiles import OUTPUTS, Position
from nestor.passes.winograd_windows import Windows

_RESULT = "result"
_MAX_NODES = 64
"""Largest element that is repeated for each result of a tile [nodes]."""


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What is made of a sum: writes and elements over the indices of the sum's statement.

    Attributes:
        elements: over ``Var`` ``result``, the sum.
        reader: the statement that did it and is replaced; None if it is the sum's own write.
    """

    writes: tuple[Write, ...]
    elements: tuple[Expr, ...]
    reader: Statement | None = None

    def at_result(self, w: Windows, at: Position, value: Expr) -> Iterator[tuple[Write, Expr]]:
        """The writes and elements for one place of a tile, whose sum is ``value``."""
        mapping = {p: variable(p) * OUTPUTS + j for (p, _), j in zip(w.pairs, at)}
        for write, element in zip(self.writes, self.elements):
            moved = map_write(write, lambda a: a.substitute(mapping))
            yield moved, substitute_vars(w.at_result(element, at), {_RESULT: value})


def own_epilogue(statement: Statement) -> Epilogue:
    """The sum as it is, where the statement writes it."""
    assert statement.reduction is not None
    dtype = statement.reduction.final[0].dtype
    return Epilogue(statement.writes, (Var(name=_RESULT, dtype=dtype),))


def find_epilogue(
    program: Program, facts: ProgramFacts, statement: Statement, w: Windows
) -> Epilogue | None:
    """The pointwise statement that alone reads the sums, each once and at its own index."""
    assert statement.reduction is not None
    name = statement.writes[0].tensor
    numbers = facts.readers.get(name, [])
    if not facts.is_private_temp(name) or len(facts.writers[name]) != 1 or len(numbers) != 1:
        return None
    reader = program.statements[numbers[0]]
    if not isinstance(reader, Statement) or not is_pointwise(reader) or reader.domain.constraints:
        return None
    if not is_functional(reader) or sum(map(node_count, reader.elements)) > _MAX_NODES:
        return None
    places = {x for x in reader.loads if x.tensor == name}
    if len(places) != 1:
        return None
    (load,) = places
    names = _same_indices(statement, reader, load)
    if names is None:
        return None
    renamed = rename_indices(reader, names)
    result = Var(name=_RESULT, dtype=load.dtype)

    def visit(node: Expr) -> Expr:
        return result if isinstance(node, Load) and node.tensor == name else node

    taken = map_expressions(renamed, lambda e: map_expr(e, visit))
    return Epilogue(taken.writes, taken.elements, reader)


def _same_indices(statement: Statement, reader: Statement, load: Load) -> dict[str, str] | None:
    """Reader's index → the sum's, if the reader visits each sum exactly once."""
    names: dict[str, str] = {}
    for written, read in zip(statement.writes[0].indices, load.indices):
        if not isinstance(written, Affine) or not isinstance(read, Affine):
            return None
        if written.is_const or read.is_const:
            if written != read:
                return None
            continue
        (old, *others), (new, *more) = read.variables(), written.variables()
        if others or more or read != variable(old) or written != variable(new) or old in names:
            return None
        if old not in reader.domain.names or new not in statement.domain.names:
            return None
        a, b = reader.domain.range_of(old), statement.domain.range_of(new)
        if (a.lower, a.upper) != (b.lower, b.upper):
            return None
        names[old] = new
    is_whole = set(names) == set(reader.domain.names) and len(set(names.values())) == len(names)
    return names if is_whole and not load.predicate else None


def make_room(
    epilogue: Epilogue, w: Windows, tensors: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """The written tensors, a border wider where tiles hang over; None where there is no room.

    What hangs over must lie outside of what the tensor holds now, one index further.
    """
    room: dict[str, Tensor] = {}
    hanging = [p for p, _ in w.pairs if w.hangs_over(p)]
    for write in epilogue.writes:
        tensor = tensors[write.tensor]
        shape = list(tensor.shape)
        for p in hanging:
            dims = [
                d
                for d, i in enumerate(write.indices)
                if not isinstance(i, Affine) or p in i.variables()
            ]
            if len(dims) != 1:
                return None
            index = write.indices[dims[0]]
            last = shape[dims[0]] - w.results(p)
            if not isinstance(index, Affine) or index != last + variable(p):
                return None
            shape[dims[0]] = shape[dims[0]] + 1
        room[tensor.name] = replace(tensor, shape=tuple(shape))
    return room
