"""Derived facts about Programs: who writes and reads what, what is a contraction, what it costs.

Nothing here is stored in the IR; every pass asks again. Sizes with symbols use typical values
(``strides.TYPICAL_SYMBOL``) where a heuristic needs a number, and are never used for legality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from nestor.ir.affine import Affine
from nestor.ir.expr import (
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Index,
    Load,
    Select,
    Unary,
    children,
    loads,
    walk,
)
from nestor.ir.program import AnyStatement, Domain, Extern, Program, Statement, Tensor
from nestor.ir.types import DType
from nestor.passes.rewriting import (
    alias_roots,
    first_position,
    in_order,
    is_sequential,
)
from nestor.passes.strides import access_strides, typical

_UNARY_WORK = {
    "neg": 0.5, "abs": 0.5, "not": 0.5, "isnan": 1.0, "isinf": 1.0, "sign": 2.0, "floor": 1.0,
    "ceil": 1.0, "trunc": 1.0, "round": 1.0, "sqrt": 6.0, "rsqrt": 8.0, "reciprocal": 5.0,
}  # fmt: skip
_BINARY_WORK = {"div": 5.0, "floordiv": 8.0, "truncdiv": 8.0, "mod": 8.0, "rem": 8.0}
_SLOW_BINARY_WORK = {"pow": 40.0, "atan2": 30.0}
TRANSCENDENTAL_WORK = 20.0
"""Cost of ``exp`` and the like, in additions: a polynomial and a range reduction."""


# --------------------------------------------------------------------------------- def and use


@dataclass(slots=True)
class ProgramFacts:
    """Def-use maps of a Program, by tensor name and by *root* (the tensor whose bytes it names).

    Attributes:
        tensors: by name.
        roots: tensor name → name of the tensor that owns the bytes.
        writers, readers: root → positions in ``program.statements``, ascending.
        last_write: root → greatest top-level order of a writer.
        first_write: root → least top-level order of a writer.
        aliased: roots that have an alias, and the aliases themselves.
        extern: tensors that an ``Extern`` reads or writes.
    """

    tensors: dict[str, Tensor]
    roots: dict[str, str]
    writers: dict[str, list[int]] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)
    last_write: dict[str, int] = field(default_factory=dict)
    first_write: dict[str, int] = field(default_factory=dict)
    aliased: set[str] = field(default_factory=set)
    extern: set[str] = field(default_factory=set)

    def is_private_temp(self, name: str) -> bool:
        """A temp without aliases that no ``Extern`` touches."""
        tensor = self.tensors[name]
        return tensor.role == "temp" and name not in self.aliased and name not in self.extern

    def is_written_before(self, name: str, position: int) -> bool:
        """Whether every write of the tensor's bytes stands before top-level ``position``."""
        return self.last_write.get(self.roots[name], -1) < position


def program_facts(program: Program) -> ProgramFacts:
    """Def-use maps, in one walk over the statements."""
    tensors = {t.name: t for t in program.tensors}
    facts = ProgramFacts(tensors=tensors, roots=alias_roots(tensors))
    for name, root in facts.roots.items():
        if name != root:
            facts.aliased |= {name, root}
    for number, statement in enumerate(program.statements):
        position = first_position(statement)
        if isinstance(statement, Extern):
            facts.extern |= {*statement.inputs, *statement.outputs}
        for root in {facts.roots[n] for n in written_tensors(statement)}:
            facts.writers.setdefault(root, []).append(number)
            facts.last_write[root] = max(facts.last_write.get(root, -1), position)
            facts.first_write[root] = min(facts.first_write.get(root, position), position)
        for root in {facts.roots[n] for n in read_tensors(statement)}:
            facts.readers.setdefault(root, []).append(number)
    return facts


def read_tensors(statement: AnyStatement) -> Iterator[str]:
    """Names of tensors that a statement reads, with repeats (``into`` reads its targets)."""
    if isinstance(statement, Extern):
        yield from statement.inputs
        return
    for load in statement.loads:
        yield load.tensor
    if statement.reduction is not None and statement.reduction.into:
        for write in statement.writes:
            yield write.tensor


def written_tensors(statement: AnyStatement) -> tuple[str, ...]:
    """Names of tensors that a statement writes."""
    if isinstance(statement, Extern):
        return statement.outputs
    return tuple(w.tensor for w in statement.writes)


def weight_tensors(program: Program) -> set[str]:
    """Parameters, constants, and temps that follow from those (or from nothing) alone.

    A temp counts if every statement that writes it is functional, reads only such tensors, and
    runs over constant extents.
    """
    facts = program_facts(program)
    known = {
        t.name
        for t in program.tensors
        if t.role in ("parameter", "constant") and all(e.is_const for e in t.shape)
    }
    known = {n for n in known if n == facts.roots[n] and n not in facts.writers}
    for statement in in_order(program.statements):
        if not isinstance(statement, Statement) or not is_weight_work(statement, known):
            continue
        position = first_position(statement)
        for name in {w.tensor for w in statement.writes}:
            if not facts.is_private_temp(name) or facts.last_write[name] != position:
                continue
            makers = (program.statements[n] for n in facts.writers[name])
            others = (m for m in makers if m is not statement)
            if all(isinstance(m, Statement) and is_weight_work(m, known) for m in others):
                known.add(name)
    return known


def is_weight_work(statement: Statement, known: set[str]) -> bool:
    """Whether a statement could run before the call: functional, static, reading ``known`` only."""
    if not is_functional(statement):
        return False
    names = set(statement.domain.names)
    used: set[str] = set()
    for r in statement.domain.ranges:
        used |= r.lower.variables() | r.upper.variables()
    for affine in (*statement.domain.constraints, *_write_affines(statement)):
        used |= affine.variables()
    for expression in statement.expressions():
        used |= expression_variables(expression)
    return used <= names and all(x.tensor in known for x in statement.loads)


def _write_affines(statement: Statement) -> Iterator[Affine]:
    return (i for w in statement.writes for i in w.indices if isinstance(i, Affine))


# ------------------------------------------------------------------------------------- shapes


def is_pointwise(statement: AnyStatement) -> bool:
    """No reduction, no scatter, every write affine: each instance stands alone."""
    return (
        isinstance(statement, Statement)
        and statement.reduction is None
        and statement.scatter is None
        and all(isinstance(i, Affine) for w in statement.writes for i in w.indices)
    )


def is_functional(statement: AnyStatement) -> bool:
    """A statement outside ``seq`` regions that reads nothing it writes and never scatters."""
    return (
        isinstance(statement, Statement)
        and not is_sequential(statement)
        and statement.scatter is None
        and (statement.reduction is None or not statement.reduction.into)
        and not {w.tensor for w in statement.writes} & {x.tensor for x in statement.loads}
    )


def is_copy(statement: AnyStatement) -> bool:
    """``Y[map(i)] = X[map'(i)]``: one write, one unconditional affine load of the same type."""
    if not isinstance(statement, Statement) or not is_pointwise(statement):
        return False
    if len(statement.writes) != 1 or not isinstance(statement.elements[0], Load):
        return False
    load = statement.elements[0]
    return not load.predicate and all(isinstance(i, Affine) for i in load.indices)


def element_count(tensor: Tensor) -> int:
    """Number of elements, symbols at their typical value."""
    return math.prod(max(0, typical(e)) for e in tensor.shape)


def tensor_bytes(tensor: Tensor) -> int:
    """Size of a tensor [bytes], symbols at their typical value."""
    return element_count(tensor) * tensor.dtype.bytes


def domain_volume(domain: Domain, names: frozenset[str] | None = None) -> int:
    """Instances of a domain (of the indices ``names`` only, if given); dependent bounds typical."""
    return math.prod(
        max(0, typical(r.upper - r.lower))
        for r in domain.ranges
        if names is None or r.name in names
    )


# --------------------------------------------------------------------------------------- costs


def expression_work(node: Expr) -> float:
    """Arithmetic of one evaluation, in additions; loads, casts, constants and indices are free."""
    own = 0.0
    match node:
        case Unary():
            own = _UNARY_WORK.get(node.op, TRANSCENDENTAL_WORK)
        case Binary():
            own = _SLOW_BINARY_WORK.get(node.op) or _BINARY_WORK.get(node.op, 1.0)
        case Select():
            own = 1.0
        case Call():
            own = 1.0 if node.function == "fma" else 60.0
        case Cast() if node.x.dtype.is_float != node.dtype.is_float:
            own = 0.5
        case _:
            pass
    return own + sum(expression_work(child) for child in children(node))


def node_count(node: Expr) -> int:
    """Number of nodes of an expression."""
    return 1 + sum(node_count(child) for child in children(node))


def statement_flops(statement: Statement) -> float:
    """Work of a statement, in additions: elements and combines per instance, finals per result."""
    instances = domain_volume(statement.domain)
    per_instance = sum(expression_work(e) for e in statement.elements)
    if statement.reduction is None:
        return instances * per_instance
    combine = sum(expression_work(e) for e in statement.reduction.monoid.combine)
    reduced = frozenset(statement.reduction.indices)
    results = instances // max(1, domain_volume(statement.domain, reduced))
    final = sum(expression_work(e) for e in statement.reduction.final)
    return instances * (per_instance + combine) + results * final


def statement_bytes(statement: Statement, tensors: dict[str, Tensor]) -> int:
    """Bytes that a statement must move if every element is touched once."""
    names = {x.tensor for x in statement.loads} | {w.tensor for w in statement.writes}
    return sum(tensor_bytes(tensors[n]) for n in names)


def access_stride(tensor: Tensor, load: Load, index: str) -> int | None:
    """Stride [elements] of a load along ``index`` in the tensor's layout; None if irregular."""
    return access_strides(tensor, load.indices, (index,))[index]


# --------------------------------------------------------------------------------- contractions


@dataclass(frozen=True, slots=True)
class ContractionRoles:
    """What a sum of products is made of. Derived; see ``contraction_roles``.

    Attributes:
        a, b: the two operand loads; ``b`` is the weight-like one where exactly one reads a
            parameter or constant.
        a_expr, b_expr: the factors as written, casts included.
        others: further factors that do not move with the reduced indices.
        batch: free indices of both operands; m: of ``a`` only; n: of ``b`` only; free: of neither.
        k: reduced indices of both operands; k_a, k_b: of one only.
        windows: pairs (free index, reduced index) that one operand adds up in one dimension so that
            windows overlap, as a convolution's ``oh*stride + kh``.
    """

    a: Load
    b: Load
    a_expr: Expr
    b_expr: Expr
    others: tuple[Expr, ...]
    batch: tuple[str, ...]
    m: tuple[str, ...]
    n: tuple[str, ...]
    free: tuple[str, ...]
    k: tuple[str, ...]
    k_a: tuple[str, ...]
    k_b: tuple[str, ...]
    windows: tuple[tuple[str, str], ...]


def contraction_roles(
    statement: AnyStatement, tensors: dict[str, Tensor] | None = None
) -> ContractionRoles | None:
    """The roles of a contraction, or None if the statement is none.

    A contraction is a sum reduction of one state whose element is a product with exactly two
    factors that are loads (perhaps cast) with affine indices and move with reduced indices, one of
    which is reused: a row-wise ``Σ x·y`` is a plain reduction.
    """
    if not isinstance(statement, Statement) or statement.reduction is None:
        return None
    reduction = statement.reduction
    if reduction.monoid.name != "sum" or reduction.scan or len(statement.elements) != 1:
        return None
    reduced = set(reduction.indices)
    operands: list[tuple[Load, Expr]] = []
    others: list[Expr] = []
    for factor in _factors(statement.elements[0]):
        load = _cast_load(factor)
        if load is not None and load_variables(load) & reduced:
            operands.append((load, factor))
        elif expression_variables(factor) & reduced:
            return None
        else:
            others.append(factor)
    if len(operands) != 2:
        return None
    if tensors is not None and _is_weight(operands[0][0], tensors):
        if not _is_weight(operands[1][0], tensors):
            operands.reverse()
    (a, a_expr), (b, b_expr) = operands
    roles = _assign_roles(statement, a, b, a_expr, b_expr, tuple(others))
    return roles if roles.m or roles.n or roles.windows else None


def _assign_roles(
    statement: Statement, a: Load, b: Load, a_expr: Expr, b_expr: Expr, others: tuple[Expr, ...]
) -> ContractionRoles:
    assert statement.reduction is not None
    reduced = set(statement.reduction.indices)
    in_a, in_b = load_variables(a), load_variables(b)
    free = [n for n in statement.domain.names if n not in reduced]

    def those(names: list[str], a_has: bool, b_has: bool) -> tuple[str, ...]:
        return tuple(n for n in names if (n in in_a) == a_has and (n in in_b) == b_has)

    summed = [n for n in statement.domain.names if n in reduced]
    return ContractionRoles(
        a=a,
        b=b,
        a_expr=a_expr,
        b_expr=b_expr,
        others=others,
        batch=those(free, True, True),
        m=those(free, True, False),
        n=those(free, False, True),
        free=those(free, False, False),
        k=those(summed, True, True),
        k_a=those(summed, True, False),
        k_b=those(summed, False, True),
        windows=(
            *_windows(a, statement.domain, reduced),
            *_windows(b, statement.domain, reduced),
        ),
    )


def _windows(load: Load, domain: Domain, reduced: set[str]) -> Iterator[tuple[str, str]]:
    """Pairs that one dimension adds up so that windows overlap (``h*D + d``, d < D, do not)."""
    for index in load.indices:
        if not isinstance(index, Affine):
            continue
        steps = {a: c for a, c in index.terms if isinstance(a, str)}
        for r in (r for r in domain.ranges if r.name in reduced and r.name in steps):
            extent = typical(r.upper - r.lower)
            for free in domain.names:
                if free in reduced or free not in steps:
                    continue
                if abs(steps[free]) < abs(steps[r.name]) * extent:
                    yield free, r.name


def _factors(node: Expr) -> Iterator[Expr]:
    if isinstance(node, Binary) and node.op == "mul":
        yield from _factors(node.a)
        yield from _factors(node.b)
    else:
        yield node


def _cast_load(node: Expr) -> Load | None:
    """A load with affine indices, seen through casts."""
    while isinstance(node, Cast):
        node = node.x
    if isinstance(node, Load) and all(isinstance(i, Affine) for i in node.indices):
        return node
    return None


def _is_weight(load: Load, tensors: dict[str, Tensor]) -> bool:
    tensor = tensors.get(load.tensor)
    return tensor is not None and tensor.role in ("parameter", "constant")


def load_variables(load: Load) -> frozenset[str]:
    """Variables in a load's indices and predicate, inside gathers too."""
    return expression_variables(load)


def expression_variables(node: Expr) -> frozenset[str]:
    """Indices and symbols that an expression's value may depend on."""
    out: set[str] = set()
    for n in walk(node):
        if isinstance(n, Index):
            out |= n.value.variables()
        elif isinstance(n, Load):
            for i in n.indices:
                if isinstance(i, Affine):
                    out |= i.variables()
            for p in n.predicate:
                out |= p.variables()
    return frozenset(out)


def is_window_reduction(statement: AnyStatement) -> bool:
    """A reduction that reads a free and a reduced index added up in one dimension (pooling)."""
    if not isinstance(statement, Statement) or statement.reduction is None:
        return False
    reduced = set(statement.reduction.indices)
    return any(
        True
        for e in statement.elements
        for x in loads(e)
        for _ in _windows(x, statement.domain, reduced)
    )


def zero_of(dtype: DType) -> Const:
    """The constant 0 (False, +0.0) of a type."""
    return Const(value=0, dtype=dtype)
