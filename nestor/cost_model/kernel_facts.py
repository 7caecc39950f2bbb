"""What a kernel's features need that no schedule changes: sizes, operations, accesses.

Computed once a kernel; the features of each schedule then take only arithmetic on a few numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from nestor.cost_model.op_counts import OpCounts, instance_ops, result_ops
from nestor.errors import UserError
from nestor.ir.affine import Affine, Mod
from nestor.ir.expr import Expr, IndexExpr, Load, walk
from nestor.ir.program import Layout, Program, Statement, Tensor
from nestor.passes.rewriting import alias_roots
from nestor.passes.strides import TYPICAL_SYMBOL, plain_indices

_SAMPLES = 256
"""Points that estimate the mean extents and the density of a domain that is no box."""


@dataclass(frozen=True, slots=True)
class Part:
    """A ``//`` or ``%`` in a physical index: ``stride * (Σ coefficient*index  op  den)``."""

    is_mod: bool
    den: int
    coefficients: tuple[tuple[str, int], ...]
    stride: int


@dataclass(frozen=True, slots=True)
class Address:
    """How an access moves through memory: strides [elements] of the statement's indices.

    ``irregular``: indices along which it jumps to wherever the data say. ``offset``: where it is
    when all indices are 0 [elements].
    """

    linear: tuple[tuple[str, int], ...]
    parts: tuple[Part, ...]
    irregular: frozenset[str]
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One read or write of a statement.

    Attributes:
        tensor: the tensor, and ``root`` the one whose bytes it names.
        size: of an element [bytes].
        is_write, is_masked: it stores; it has a predicate.
        per_result: it happens once a result of a reduction, not once an instance.
    """

    tensor: str
    root: str
    size: int
    indices: tuple[IndexExpr, ...]
    is_write: bool
    is_masked: bool
    per_result: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementFacts:
    """One statement.

    Attributes:
        extents: mean number of values of each index.
        density: share of the box of ``extents`` that is in the domain, in (0, 1].
        ops, final_ops: of one instance, and of one result.
        size: widest element that it computes with or moves [bytes].
    """

    statement: Statement
    extents: dict[str, float]
    density: float
    ops: OpCounts
    final_ops: OpCounts
    accesses: tuple[Access, ...]
    size: int

    @property
    def instances(self) -> float:
        """How often the statement runs."""
        return prod(self.extents.values()) * self.density

    @property
    def results(self) -> float:
        """How many results it has; a scan has one an instance."""
        reduction = self.statement.reduction
        if reduction is None or reduction.scan:
            return self.instances
        return prod(e for n, e in self.extents.items() if n not in reduction.indices)

    @property
    def total_ops(self) -> OpCounts:
        """Operations of the whole statement."""
        total = self.ops.scaled(self.instances)
        if self.statement.reduction is None:
            return total
        return total + self.final_ops.scaled(self.results)


@dataclass(slots=True)
class KernelFacts:
    """Facts of a kernel; ``address`` remembers what it worked out for each layout."""

    kernel: Program
    sizes: dict[str, int]
    statements: dict[str, StatementFacts]
    tensors: dict[str, Tensor]
    tensor_bytes: dict[str, int]
    _addresses: dict[tuple[int, Layout | None], Address] = field(default_factory=dict)

    def value(self, a: Affine) -> int:
        """An extent with every symbol at its size."""
        return a.const if a.is_const else int(a.evaluate(self.sizes))

    def address(self, access: Access, layout: Layout | None) -> Address:
        """How ``access`` moves, where its tensor has ``layout`` (None: its own)."""
        key = (id(access), layout)
        known = self._addresses.get(key)
        if known is None:
            tensor = self.tensors[access.tensor]
            known = _address(self, tensor, layout or tensor.layout, access.indices)
            self._addresses[key] = known
        return known

    @property
    def ops(self) -> OpCounts:
        """Operations of all statements."""
        total = OpCounts()
        for s in self.statements.values():
            total = total + s.total_ops
        return total

    def role_bytes(self, *roles: str) -> int:
        """Bytes of the tensors with one of ``roles`` that own their bytes."""
        return sum(
            self.tensor_bytes[t.name]
            for t in self.kernel.tensors
            if t.role in roles and t.alias_of is None
        )


def kernel_facts(kernel: Program, sizes: Mapping[str, int] | None = None) -> KernelFacts:
    """The facts of ``kernel``.

    Args: sizes: values of its symbols; those left out get a typical one.
    Raises: ``UserError`` if it has an extern statement: that has no loops.
    """
    values = {s.name: max(s.lower, TYPICAL_SYMBOL) for s in kernel.symbols} | dict(sizes or {})
    tensors = {t.name: t for t in kernel.tensors}
    facts = KernelFacts(kernel, values, {}, tensors, {})
    roots = alias_roots(tensors)
    for t in kernel.tensors:
        shape = t.shape if t.layout is None else t.layout.shape
        facts.tensor_bytes[t.name] = prod(max(0, facts.value(e)) for e in shape) * t.dtype.bytes
    for s in kernel.statements:
        if not isinstance(s, Statement):
            raise UserError(f"kernel '{kernel.name}': extern '{s.name}' has no loops to rate")
        extents, density = _domain_size(facts, s)
        accesses = tuple(_accesses(s, tensors, roots))
        facts.statements[s.name] = StatementFacts(
            statement=s,
            extents=extents,
            density=density,
            ops=instance_ops(s),
            final_ops=result_ops(s),
            accesses=accesses,
            size=max((a.size for a in accesses), default=4),
        )
    return facts


def _domain_size(facts: KernelFacts, s: Statement) -> tuple[dict[str, float], float]:
    """Mean extents and density; by a fixed sample of points where the domain is no box."""
    ranges = s.domain.ranges
    symbols = set(facts.sizes)
    is_box = all((r.upper - r.lower).variables() <= symbols for r in ranges)
    if is_box and not s.domain.constraints:
        return {r.name: max(0.0, float(facts.value(r.upper - r.lower))) for r in ranges}, 1.0
    rng = np.random.default_rng(0)
    env: dict[str, object] = dict(facts.sizes)
    inside = np.ones(_SAMPLES, dtype=bool)
    extents: dict[str, float] = {}
    for r in ranges:
        low = np.broadcast_to(r.lower.evaluate(env), _SAMPLES)
        extent = np.maximum(np.broadcast_to(r.upper.evaluate(env), _SAMPLES) - low, 0)
        extents[r.name] = float(extent.mean())
        env[r.name] = low + np.floor(rng.random(_SAMPLES) * np.maximum(extent, 1)).astype(np.int64)
    for c in s.domain.constraints:
        inside &= np.broadcast_to(c.evaluate(env), _SAMPLES) >= 0
    return extents, max(float(inside.mean()), 1.0 / _SAMPLES)


def _accesses(
    s: Statement, tensors: Mapping[str, Tensor], roots: Mapping[str, str]
) -> Iterator[Access]:
    reduction = s.reduction

    def access(name: str, indices: tuple[IndexExpr, ...], **flags: bool) -> Access:
        size = tensors[name].dtype.bytes
        return Access(tensor=name, root=roots[name], size=size, indices=indices, **flags)

    def reads(expressions: tuple[Expr, ...], per_result: bool) -> Iterator[Access]:
        seen: set[Load] = set()
        for e in expressions:
            for x in walk(e):
                if isinstance(x, Load) and x not in seen:
                    seen.add(x)
                    masked = bool(x.predicate)
                    yield access(
                        x.tensor, x.indices, is_write=False, is_masked=masked, per_result=per_result
                    )

    yield from reads(s.elements, False)
    once = reduction is not None and not reduction.scan
    if reduction is not None:
        yield from reads(reduction.final, once)
    for w in s.writes:
        yield access(w.tensor, w.indices, is_write=True, is_masked=False, per_result=once)
        if reduction is not None and reduction.into:
            yield access(w.tensor, w.indices, is_write=False, is_masked=False, per_result=once)


def _address(
    facts: KernelFacts, tensor: Tensor, layout: Layout | None, indices: tuple[IndexExpr, ...]
) -> Address:
    plain, irregular = plain_indices(indices)
    physical, shape = tuple(plain), tensor.shape
    if layout is not None:
        mapping = {f"d{d}": index for d, index in enumerate(plain)}
        physical = tuple(p.substitute(mapping) for p in layout.physical)
        shape = layout.shape
    linear: dict[str, int] = {}
    parts: list[Part] = []
    stride, offset = 1, 0
    for index, extent in zip(reversed(physical), reversed(shape), strict=True):
        offset += index.const * stride
        for atom, c in index.terms:
            if isinstance(atom, str):
                linear[atom] = linear.get(atom, 0) + c * stride
                continue
            names = [(a, k) for a, k in atom.num.terms if isinstance(a, str)]
            if len(names) < len(atom.num.terms):  # a quotient of a quotient: anywhere
                irregular |= atom.num.variables()
            else:
                is_mod = isinstance(atom, Mod)
                parts.append(Part(is_mod, atom.den, tuple(names), c * stride))
        stride *= max(1, facts.value(extent))
    irregular -= set(facts.sizes)
    return Address(
        tuple((n, v) for n, v in linear.items() if v and n not in facts.sizes),
        tuple(parts),
        frozenset(irregular),
        offset,
    )
