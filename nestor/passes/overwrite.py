"""Write a result over an operand that nobody reads any more: a residual sum, an activation.

Kernels are already cut when this runs, so that it cannot keep statements apart that would fuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from nestor.ir.affine import AffineLike, affine, variable
from nestor.ir.expr import Expr, IndexExpr, Load, map_expr
from nestor.ir.program import (
    AnyStatement,
    Extern,
    Kernel,
    Program,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.fusion import FusedKernel
from nestor.passes.rewriting import alias_roots, map_expressions

_ONE = affine(1)


def overwrite_operands(
    program: Program, parts: Sequence[FusedKernel | Extern]
) -> list[FusedKernel | Extern]:
    """Let pointwise statements write over temps whose last reader they are.

    Rewrite: ``T[i] = f(A[i], …)``, with ``A`` dead afterwards → ``A[i] = f(A[i], …)``, and every
        later ``T`` is ``A``.
    Legal when: both are temps between kernels of one dtype, shape and layout; the statement is the
        only one of its kernel that touches ``A``, at the element it writes; no alias is involved.
        The checker then proves the kernel as any that updates in place.

    Args: program: the Program that ``parts`` came from. parts: kernels in running order.
    """
    return _Overwriter(program, parts).run()


class _Overwriter:
    def __init__(self, program: Program, parts: Sequence[FusedKernel | Extern]):
        self.parts = list(parts)
        self.tensors = {t.name: t for t in program.tensors}
        roots = alias_roots(self.tensors)
        shared = Counter(roots.values())
        self.fixed = {n for n in self.tensors if shared[roots[n]] > 1}
        self.uses = [_touched(p) for p in parts]
        self.last = {n: k for k, names in enumerate(self.uses) for n in names}
        self.first = {n: k for k, names in reversed([*enumerate(self.uses)]) for n in names}
        for part in parts:
            if isinstance(part, Extern):
                self.fixed |= _touched(part)

    def run(self) -> list[FusedKernel | Extern]:
        for position in range(len(self.parts)):
            part = self.parts[position]
            if isinstance(part, Extern):
                continue
            for n in range(len(part.kernel.statements)):
                pair = self._pair(position, n)
                if pair is not None:
                    self._replace(position, *pair)
        return self.parts

    def _pair(self, position: int, n: int) -> tuple[str, str] | None:
        """Result and operand of a kernel's ``n``-th statement, where it may write over one."""
        part = self.parts[position]
        assert isinstance(part, FusedKernel)
        s = part.kernel.statements[n]
        if not isinstance(s, Statement) or len(s.order) > 1 or s.scatter or s.reduction:
            return None
        if len(s.writes) != 1:
            return None
        write = s.writes[0]
        if not self._is_free(part.kernel, write.tensor, "output"):
            return None
        if self.first[write.tensor] != position:
            return None  # another kernel has written a part of it
        reads: dict[str, list[Load]] = {}
        for load in s.loads:
            reads.setdefault(load.tensor, []).append(load)
        for name, found in reads.items():
            if (
                self._is_free(part.kernel, name, "input")
                and self.last[name] == position
                and self._is_same_element(name, found, write)
                and _is_alone(part.kernel, s, name, write.tensor)
            ):
                return write.tensor, name
        return None

    def _is_free(self, kernel: Kernel, name: str, role: str) -> bool:
        """Whether ``name`` is a temp of the model that this kernel only reads, or only writes."""
        inside = next((t for t in kernel.tensors if t.name == name), None)
        return (
            inside is not None
            and inside.role == role
            and self.tensors[name].role == "temp"
            and name not in self.fixed
        )

    def _is_same_element(self, operand: str, loads: list[Load], write: Write) -> bool:
        """Whether all loads read the place in memory that ``write`` would have over there."""
        a, b = self.tensors[operand], self.tensors[write.tensor]
        place = _at_wide(b, write.indices)
        return _memory(a) == _memory(b) and all(_at_wide(a, x.indices) == place for x in loads)

    def _replace(self, position: int, result: str, operand: str) -> None:
        """Call ``result`` by the name of ``operand``, from this kernel on."""
        for k in range(position, len(self.parts)):
            part = self.parts[k]
            if isinstance(part, FusedKernel) and result in self.uses[k]:
                kernel = _renamed(part.kernel, self.tensors[result], self.tensors[operand])
                self.parts[k] = replace(part, kernel=kernel)
                self.uses[k] = self.uses[k] - {result} | {operand}
        self.last[operand] = self.last.pop(result)


def _touched(part: FusedKernel | Extern) -> frozenset[str]:
    if isinstance(part, Extern):
        return frozenset((*part.inputs, *part.outputs))
    return frozenset(t.name for t in part.kernel.tensors)


def _wide(t: Tensor) -> list[int]:
    """The dimensions of more than one element; the others do not change where an element lies."""
    return [d for d, extent in enumerate(t.shape) if extent != _ONE]


def _at_wide(t: Tensor, indices: Sequence[IndexExpr]) -> tuple[IndexExpr, ...]:
    return tuple(indices[d] for d in _wide(t))


def _memory(t: Tensor) -> tuple[object, ...]:
    """What two tensors must agree on to be stored alike, dimensions of one element aside."""
    wide = _wide(t)
    extents = tuple(t.shape[d] for d in wide)
    physical = t.layout.physical if t.layout else [variable(f"d{d}") for d in range(len(t.shape))]
    sizes = t.layout.shape if t.layout else t.shape
    names: dict[str, AffineLike] = {f"d{d}": 0 for d in range(len(t.shape))}
    names |= {f"d{d}": variable(f"e{k}") for k, d in enumerate(wide)}
    stored = tuple((p.substitute(names), n) for p, n in zip(physical, sizes) if n != _ONE)
    return t.dtype, extents, stored


def _is_alone(kernel: Kernel, s: Statement, operand: str, result: str) -> bool:
    """Whether no other statement of the kernel touches ``operand`` or writes ``result``."""
    for other in kernel.statements:
        if other is s:
            continue
        if isinstance(other, Extern) or any(w.tensor == result for w in other.writes):
            return False
        if any(load.tensor == operand for load in other.loads):
            return False
    return True


def _renamed(kernel: Kernel, result: Tensor, operand: Tensor) -> Kernel:
    """``result`` under the name of ``operand``; where both are used, one tensor that is updated."""

    def moved(indices: tuple[IndexExpr, ...]) -> tuple[IndexExpr, ...]:
        new: list[IndexExpr] = [affine(0)] * len(operand.shape)
        for d, index in zip(_wide(operand), _at_wide(result, indices), strict=True):
            new[d] = index
        return tuple(new)

    def rename(e: Expr) -> Expr:
        if isinstance(e, Load) and e.tensor == result.name:
            return replace(e, tensor=operand.name, indices=moved(e.indices))
        return e

    def rename_write(w: Write) -> Write:
        if w.tensor != result.name:
            return w
        return Write(tensor=operand.name, indices=moved(w.indices))

    statements: list[AnyStatement] = []
    for s in kernel.statements:
        assert isinstance(s, Statement)
        s = map_expressions(s, lambda e: map_expr(e, rename))
        statements.append(replace(s, writes=tuple(map(rename_write, s.writes))))
    both = any(t.name == operand.name for t in kernel.tensors)
    tensors: list[Tensor] = []
    for t in kernel.tensors:
        if t.name == operand.name:
            tensors.append(replace(t, role="inout"))
        elif t.name != result.name:
            tensors.append(t)
        elif not both:
            tensors.append(replace(operand, role=t.role))
    return replace(kernel, tensors=tuple(tensors), statements=tuple(statements))
