"""``parse_kernel``: a Python function → its ``Program``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nestor.errors import IRError
from nestor.frontends.python import values
from nestor.frontends.python.body import Body
from nestor.frontends.python.expressions import ArrayRef
from nestor.frontends.python.frame import Frame, Knowledge, Restart
from nestor.frontends.python.parameters import Parameter, read_parameters
from nestor.frontends.python.predication import predicate_branches
from nestor.frontends.python.program import make_statements, store_scalars
from nestor.frontends.python.residence import settle_scalars
from nestor.frontends.python.scalars import split_lives, substitute_scalars
from nestor.frontends.python.source import Source, read_source
from nestor.frontends.python.tree import Assign, Node
from nestor.frontends.python.values import Value
from nestor.ir.affine import affine
from nestor.ir.expr import Load
from nestor.ir.program import Program, Statement, Symbol, Tensor
from nestor.ir.verifier import verify_program

MAX_ROUNDS = 1000
"""Rounds of type inference; each learns something about a scalar, so they are few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedKernel:
    """A function of the kernel language.

    Attributes:
        parameters: in the order of the signature.
        program: what it computes. Array and scalar parameters are tensors of their names (*inout*
            if written), sizes and ``int`` parameters are symbols (at least 0).
    """

    source: Source
    parameters: tuple[Parameter, ...]
    program: Program


def parse_kernel(function: Callable[..., Any]) -> ParsedKernel:
    """Parse ``function``; nothing of it runs, but its annotations are evaluated.

    Raises: ``Unsupported`` or ``UserError`` with the line, a caret and what to write instead.
    """
    source = read_source(function)
    parameters = read_parameters(source)
    symbols = _symbols(parameters)
    taken = set(symbols) | {p.name for p in parameters}
    body, nodes, knowledge = _lower(source, parameters, symbols, taken)
    lives = split_lives(nodes, {k: t for k, (t, _) in knowledge.types.items()})
    nodes = predicate_branches(nodes, lives)
    lives = substitute_scalars(nodes, lives)
    arrays = {p.name: p.dtype for p in parameters} | {t.name: t.dtype for t in body.tensors}
    lives = settle_scalars(nodes, lives, arrays)
    names = {life.name: body.fresh(life.name.split("#")[0]) for life in lives}
    temps = store_scalars(nodes, lives, names)
    tensors = [_tensor(p, body.written) for p in parameters if p.kind != "integer"]
    tensors += body.tensors + temps
    statements = make_statements(nodes, {t.name: t.shape for t in tensors})
    program = Program(
        name=source.name,
        symbols=tuple(Symbol(name=name, lower=0) for name in symbols),
        tensors=tuple(_used(tensors, statements)),
        statements=tuple(statements),
    )
    try:
        verify_program(program)
    except IRError as error:
        raise source.wrong(source.tree, str(error), "see the statement above") from None
    found = tuple(replace(p, written=p.name in body.written) for p in parameters)
    return ParsedKernel(source=source, parameters=found, program=program)


def _symbols(parameters: tuple[Parameter, ...]) -> list[str]:
    out: dict[str, None] = {}
    for p in parameters:
        if p.kind == "integer":
            out[p.name] = None
        for size in p.shape:
            out.update(dict.fromkeys(sorted(size.variables())))
    return list(out)


def _tensor(p: Parameter, written: set[str]) -> Tensor:
    role = "inout" if p.name in written else "input"
    return Tensor(name=p.name, shape=p.shape, dtype=p.dtype, role=role)  # type: ignore[arg-type]


def _used(tensors: list[Tensor], statements: list[Statement]) -> list[Tensor]:
    """All but the temporaries that nothing writes or reads."""
    seen = {w.tensor for s in statements for w in s.writes}
    for s in statements:
        for e in (*s.elements, *(i for w in s.writes for i in w.indices)):
            seen |= _loaded(e)
    return [t for t in tensors if t.role != "temp" or t.name in seen]


def _loaded(e: Any) -> set[str]:
    from nestor.ir.affine import Affine
    from nestor.ir.expr import distinct_nodes

    if isinstance(e, Affine):
        return set()
    return {n.tensor for n in distinct_nodes(e) if isinstance(n, Load)}


def _lower(
    source: Source, parameters: tuple[Parameter, ...], symbols: list[str], taken: set[str]
) -> tuple[Body, list[Node], Knowledge]:
    """Lower the body until the types of all scalars are settled."""
    knowledge = Knowledge()
    for _ in range(MAX_ROUNDS):
        knowledge.changed = False
        body = Body(knowledge, taken)
        frame = Frame(source, "", knowledge)
        try:
            nodes = [*_bind_parameters(frame, body, parameters, symbols), *body.function(frame)]
        except Restart:
            continue
        if not knowledge.changed:
            return body, nodes, knowledge
    raise source.unsupported(
        source.tree, "the types of its scalars do not settle", "declare their types"
    )


def _bind_parameters(
    frame: Frame, body: Body, parameters: tuple[Parameter, ...], symbols: list[str]
) -> list[Node]:
    out: list[Node] = []
    for name in symbols:
        frame.bind(name, values.integer(affine(name)))
        frame.fixed[name] = "size or int parameter"
    for p in parameters:
        if p.kind == "array":
            frame.bind(p.name, ArrayRef(p.name, p.dtype, p.shape))
        elif p.kind == "scalar":
            value = Value(Load(tensor=p.name, indices=(), dtype=p.dtype), p.weak)
            if p.name not in frame.assigned:
                frame.bind(p.name, value)
                continue
            key = frame.hold(p.name)
            body.knowledge.demoted.add(key)
            body.knowledge.note_type(key, value)
            dtype, _ = body.knowledge.types[key]
            first = Assign(key, None, values.convert(value, dtype), frame.source, frame.source.tree)
            out.append(first)
    return out
