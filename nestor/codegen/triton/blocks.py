"""Blocks of values: tiles of a kernel, one dimension a loop of the tile.

Inside a tile every expression has the rank of the tile. Along the loops that it does not depend on
its size is 1, so that all of them broadcast against each other; what depends on none is a scalar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nestor.codegen.triton.names import TYPES, Names
from nestor.errors import Unsupported
from nestor.ir.affine import Affine, Atom, FloorDiv, Interval
from nestor.ir.program import Tensor
from nestor.ir.types import DType


@dataclass(frozen=True, slots=True)
class Value:
    """An expression's source, and the tile's loops that it varies over."""

    text: str
    dims: frozenset[str] = frozenset()


@dataclass(slots=True)
class Register:
    """A buffer that a program holds: a block whose dimensions are those of the buffer (``places``)
    along which it varies, in order, as long as the tile's loops there (``sizes``).

    ``name`` is empty until something was stored. ``running``: the loops of the tile that a scan's
    states vary over, one more than the buffer has: what is read is the state at each.
    """

    dtype: DType
    shape: tuple[int, ...]
    name: str = ""
    running: tuple[str, ...] = ()
    sizes: dict[int, int] = field(default_factory=dict)
    places: tuple[int, ...] = ()


@dataclass(slots=True)
class Context:
    """What is known at a place of the nest.

    Attributes:
        lines: of the source so far. depth: of the indentation.
        names: identifiers. loops: those of loops and symbols; of a tile's loop its 1-d ``arange``.
        sizes: of the tile's loops. axes: those that are open, in order.
        ranges: of loops and symbols.
        conditions: what is tested at this place, each ``affine ≥ 0``.
        tensors: in memory, with ``pointers``. registers: buffers.
        loads: blocks that were loaded from memory, by tensor and source; and the positions of the
            tile's loops that they vary over.
        wide: whether offsets need 64 bits.
        precision: of products of f32: ``ieee``, ``tf32`` or ``tf32x3``.
        boxes: descriptors of boxes of tensors, by tensor and shape: their names and what makes
            them; None where there are to be none.
        functions: sources of those that expressions call, by name.
        checks: whether indices that are data were tested.
    """

    tensors: Mapping[str, Tensor]
    pointers: Mapping[str, str]
    names: Names
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    loops: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    axes: tuple[str, ...] = ()
    ranges: dict[str, Interval] = field(default_factory=dict)
    conditions: tuple[Affine, ...] = ()
    registers: dict[str, Register] = field(default_factory=dict)
    loads: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    wide: bool = False
    precision: str = "ieee"
    boxes: dict[tuple[str, tuple[int, ...]], tuple[str, str]] | None = None
    functions: dict[str, str] = field(default_factory=dict)
    checks: bool = False

    def line(self, text: str) -> None:
        """Add a line."""
        self.lines.append("    " * self.depth + text)

    def boxes_made(self) -> list[str]:
        """Lines that make the descriptors, for the beginning of the kernel."""
        return [f"    {name} = {made}" for name, made in (self.boxes or {}).values()]

    def assign(self, name: str, value: Value) -> Value:
        """Give a value a name of its own."""
        found = self.names.fresh(name)
        self.line(f"{found} = {value.text}")
        return Value(found, value.dims)

    def expanded(self, name: str, dims: tuple[str, ...]) -> str:
        """A block with the dimensions ``dims``, in their order, as one of the tile's rank."""
        if dims == self.axes:
            return name
        slots = ", ".join(":" if axis in dims else "None" for axis in self.axes)
        return f"{name}[{slots}]" if dims else name

    def shape(self, dims: frozenset[str]) -> str:
        """The shape of a block that varies over ``dims``."""
        return shape_text(self.sizes[a] if a in dims else 1 for a in self.axes)

    def spread(self, value: Value, dims: frozenset[str], dtype: DType) -> Value:
        """A value of type ``dtype`` as a block that has all of ``dims``."""
        if value.dims == dims:
            return value
        if not value.dims:
            return Value(f"tl.full({self.shape(dims)}, {value.text}, {TYPES[dtype]})", dims)
        return Value(f"tl.broadcast_to({value.text}, {self.shape(dims)})", dims)

    # ---------------------------------------------------------------- index arithmetic

    def affine(self, value: Affine) -> Value:
        """An index expression."""
        dims: frozenset[str] = frozenset()
        out = ""
        for atom, factor in value.terms:
            term = self._atom(atom)
            dims |= term.dims
            body = term.text if abs(factor) == 1 else f"{abs(factor)} * {term.text}"
            if not out:
                out = body if factor > 0 else f"-{body}"
            else:
                out += f" + {body}" if factor > 0 else f" - {body}"
        if not out:
            return Value(str(value.const))
        if value.const:
            out += f" + {value.const}" if value.const > 0 else f" - {-value.const}"
        return Value(out, dims)

    def _atom(self, atom: Atom) -> Value:
        if isinstance(atom, str):
            if atom in self.axes:
                return Value(self.expanded(self.loops[atom], (atom,)), frozenset({atom}))
            return Value(self.loops[atom])
        low = atom.num.bounds(self.ranges)[0]
        if low is None:
            raise Unsupported(f"the sign of {atom.num} is not known, and Triton's // truncates")
        # Rounding towards zero is rounding down for what is not negative.
        shift = 0 if low >= 0 else -(low // atom.den)
        num = self.affine(atom.num + shift * atom.den)
        if not isinstance(atom, FloorDiv):
            return Value(f"(({num.text}) % {atom.den})", num.dims)
        text = f"(({num.text}) // {atom.den})"
        return Value(f"({text} - {shift})" if shift else text, num.dims)

    def condition(self, conditions: tuple[Affine, ...]) -> Value:
        """Whether all of ``conditions`` hold; the empty text stands for what always does."""
        parts: list[Value] = []
        for c in conditions:
            low = c.bounds(self.ranges)[0]
            if low is None or low < 0:
                parts.append(self._test(c))
        dims = frozenset().union(*(p.dims for p in parts))
        if len(parts) == 1:
            return parts[0]
        return Value(" & ".join(f"({p.text})" for p in parts), dims)

    def _test(self, condition: Affine) -> Value:
        """``condition ≥ 0``, what is added on the left and what is taken away on the right."""
        more = Affine(tuple((a, c) for a, c in condition.terms if c > 0))
        less = Affine(tuple((a, -c) for a, c in condition.terms if c < 0))
        left, right = self.affine(more), self.affine(less)
        const = condition.const
        dims = left.dims | right.dims
        if not less.terms:
            return Value(f"{left.text} >= {-const}", dims)
        if not more.terms:
            return Value(f"{right.text} < {const + 1}", dims)
        bound = f"{left.text} + {const + 1}" if const + 1 else left.text
        return Value(f"{right.text} < {bound}", dims)


def shape_text(sizes: object) -> str:
    """A shape as a tuple."""
    found = [str(s) for s in sizes]  # type: ignore[attr-defined]
    return f"({', '.join(found)},)" if len(found) == 1 else f"({', '.join(found)})"
