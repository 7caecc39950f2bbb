"""A Program as one C99 function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nestor.codegen.c.expressions import Printer, c_type
from nestor.codegen.c.names import fresh_name, name_all
from nestor.codegen.c.nest import CIf, CLeaf, CLoop, CNode, NestBuilder
from nestor.codegen.c.temporaries import find_scalars
from nestor.errors import Unsupported
from nestor.ir.expr import Binary, Load
from nestor.ir.program import Program, Statement, Tensor
from nestor.ir.types import DType

_INCLUDES = "#include <math.h>\n#include <stdbool.h>\n#include <stdint.h>\n#include <stdlib.h>\n"
_ASSIGN = {"add": "+=", "sub": "-=", "mul": "*=", "div": "/="}
_PLAIN = (DType.f64, DType.f32, DType.i64, DType.i32)


def print_c(
    program: Program,
    function_name: str,
    *,
    symbols: Mapping[str, int] | None = None,
    restrict: bool = True,
) -> str:
    """``program`` in its own order as C99 text with one function, ``void function_name(…)``.

    Its parameters are (without ``symbols``) the symbols as ``int64_t``, then the tensors that are
    not temporaries, in their order. A scalar that is only read is passed by value, an array as a
    pointer to its rows, ``double (*restrict A)[1100]``. Temporaries are local: static arrays where
    their sizes are known, and plain variables where one cell at a time is in use. Statements that
    share loops in their orders share them in C.

    Integers wrap in the IR: compile with ``-fwrapv`` where they may overflow. A subscript that is
    data is not checked.

    Args:
        symbols: sizes to fix; all of them, or None for parameters.
        restrict: tell the compiler what the IR promises, that arrays do not overlap.
    Raises: ``Unsupported`` for reductions, calls of operators, layouts, aliases, f16 and bf16.
    """
    return _Function(program, function_name, symbols, restrict).text()


class _Function:
    def __init__(
        self, program: Program, name: str, symbols: Mapping[str, int] | None, restrict: bool
    ) -> None:
        self.program, self.function, self.symbols = program, name, symbols
        self.star = "*restrict " if restrict else "*"
        for t in program.tensors:
            if t.layout is not None or t.alias_of is not None:
                raise Unsupported(f"tensor {t.name}: layouts and aliases have no C")
        missing = {s.name for s in program.symbols} - (symbols or {}).keys()
        if symbols is not None and missing:
            raise KeyError(f"{program.name}: no size for {', '.join(sorted(missing))}")
        wanted = [s.name for s in program.symbols] + [t.name for t in program.tensors]
        self.names = name_all(wanted, {name})
        shapeless = frozenset(t.name for t in program.tensors if not t.shape)
        written = {
            w.tensor for s in program.statements if isinstance(s, Statement) for w in s.writes
        }
        temps = {t.name for t in program.by_role("temp")}
        self.by_value = frozenset(n for n in shapeless if n in temps or n not in written)
        self.written = written
        self.scalars: frozenset[str] = frozenset()
        self.printer = Printer(self.names, self.by_value)

    def text(self) -> str:
        """The whole file."""
        nest = NestBuilder({*self.names, *self.names.values(), self.function}).build(self.program)
        self.scalars = find_scalars(self.program, nest)
        self.printer.contracted = self.scalars
        body = [*self._sizes(), *self._temporaries(), *self._nodes(nest, 1), *self._frees()]
        head = self._head()
        helpers = [text for _, text in sorted(self.printer.helpers.items())]
        return "\n".join((_INCLUDES, *(h + "\n" for h in helpers), head, *body, "}")) + "\n"

    # ------------------------------------------------------------------------- declarations

    def _head(self) -> str:
        # Symbols come first: the lengths of rows need them.
        known = self.symbols is not None
        sizes = [] if known else [f"int64_t {self.names[s.name]}" for s in self.program.symbols]
        tensors = [self._parameter(t) for t in self.program.tensors if t.role != "temp"]
        inside = ",\n    ".join((*sizes, *tensors)) or "void"
        return f"void {self.function}(\n    {inside}\n) {{"

    def _parameter(self, t: Tensor) -> str:
        const = "" if t.name in self.written else "const "
        kind, name = c_type(t.dtype), self.names[t.name]
        if not t.shape:
            by_value = t.name in self.by_value
            return f"{const}{kind} {name}" if by_value else f"{const}{kind} {self.star}{name}"
        rows = self._rows(t)
        if rows:
            return f"{const}{kind} ({self.star}{name}){rows}"
        return f"{const}{kind} {self.star}{name}"

    def _rows(self, t: Tensor, first: int = 1) -> str:
        return "".join(f"[{self._extent(t, d)}]" for d in range(first, len(t.shape)))

    def _extent(self, t: Tensor, d: int) -> str:
        if self.symbols is not None:
            return str(t.shape[d].evaluate(self.symbols))
        return self.printer.affine(t.shape[d], {})[0]

    def _sizes(self) -> Iterator[str]:
        """The sizes that are known, as constants."""
        for s in self.program.symbols if self.symbols is not None else ():
            value = self.symbols[s.name]  # type: ignore[index]
            name = self.names[s.name]
            if abs(value) < 2**31:
                yield f"    enum {{ {name} = {value} }};"
            else:
                yield f"    const int64_t {name} = {value}LL;"

    def _temporaries(self) -> Iterator[str]:
        for t in self.program.by_role("temp"):
            kind, name = c_type(t.dtype), self.names[t.name]
            if not t.shape or t.name in self.scalars:
                yield f"    {kind} {name};"
            elif self.symbols is not None:
                yield f"    static {kind} {name}{self._rows(t, 0)} __attribute__((aligned(64)));"
            else:
                rows = self._rows(t)
                pointer = f"({self.star}{name}){rows}" if rows else f"{self.star}{name}"
                size = f"sizeof({kind}{rows})"
                yield f"    {kind} {pointer} = malloc({size} * (size_t)({self._extent(t, 0)}));"

    def _frees(self) -> Iterator[str]:
        for t in self.program.by_role("temp"):
            if t.shape and self.symbols is None and t.name not in self.scalars:
                yield f"    free({self.names[t.name]});"

    # ------------------------------------------------------------------------------ nest

    def _nodes(self, nodes: tuple[CNode, ...], depth: int) -> Iterator[str]:
        indent = "    " * depth
        for node in nodes:
            match node:
                case CLoop():
                    yield f"{indent}{self._for(node)} {{"
                    yield from self._nodes(node.body, depth + 1)
                    yield indent + "}"
                case CIf():
                    tests = " && ".join(self.printer.condition(c, {}) for c in node.conditions)
                    yield f"{indent}if ({tests}) {{"
                    yield from self._nodes(node.body, depth + 1)
                    yield indent + "}"
                case CLeaf():
                    yield from (indent + line for line in self._statement(node))

    def _for(self, loop: CLoop) -> str:
        v = loop.variable
        lower = self.printer.extreme(loop.lower.choose, loop.lower.terms)
        terms, test = loop.upper.terms, "<"
        if all(t.const >= 1 and t.terms for t in terms):
            terms, test = tuple(t - 1 for t in terms), "<="
        upper = self.printer.extreme(loop.upper.choose, terms)
        return f"for (int64_t {v} = {lower}; {v} {test} {upper}; {v}++)"

    def _statement(self, leaf: CLeaf) -> Iterator[str]:
        """``writes = elements``; several are computed before the first is stored."""
        s, rename = leaf.statement, leaf.rename
        targets = [self.printer.element(w.tensor, w.indices, rename) for w in s.writes]
        if len(targets) == 1:
            yield self._assignment(leaf, targets[0])
            return
        taken = {*self.names.values(), *rename.values(), self.function}
        yield "{"
        values = []
        for k, element in enumerate(s.elements):
            name = fresh_name(f"value{k}", taken)
            values.append(name)
            yield f"    {c_type(element.dtype)} {name} = {self.printer.expr(element, rename)[0]};"
        for target, value in zip(targets, values, strict=True):
            yield f"    {target} = {value};"
        yield "}"

    def _assignment(self, leaf: CLeaf, target: str) -> str:
        s, rename = leaf.statement, leaf.rename
        element, write = s.elements[0], s.writes[0]
        if isinstance(element, Binary) and element.op in _ASSIGN and element.dtype in _PLAIN:
            a = element.a
            own = isinstance(a, Load) and a.tensor == write.tensor and a.indices == write.indices
            if own and isinstance(a, Load) and a.other is None:
                b = self.printer.expr(element.b, rename)[0]
                return f"{target} {_ASSIGN[element.op]} {b};"
        return f"{target} = {self.printer.expr(element, rename)[0]};"
