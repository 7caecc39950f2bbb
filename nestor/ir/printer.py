"""IR as text. ``parser`` reads it back to an equal object.

A Program::

    program softmax(N: 1..64) {
      input X: f32[N, 9]
      temp m: f32[N]
      output Y: f32[N, 9]

      statement M over { 0 <= i < N, 0 <= j < 9 }
        reduce max(f32) over j
        s0 <- X[i, j]
        m[i] = s0
      statement N over { 0 <= i < N, 0 <= j < 9 }
        Y[i, j] = exp(X[i, j] - m[i])
    }

``s0 <-`` is the element of state component 0, the other lines are the writes. Statements of an
ordered region stand in ``seq t { … }``; positions count up from 0 unless ``at 5:`` says otherwise.
Constants and other typed leaves carry ``:dtype``; ``f32(x)`` is a cast. Origins are comments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from nestor.ir.affine import Affine, FloorDiv, Mod
from nestor.ir.expr import (
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Index,
    IndexExpr,
    Load,
    Select,
    Unary,
    Var,
)
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node, node_children
from nestor.ir.monoid import Monoid, is_builtin
from nestor.ir.program import (
    AnyStatement,
    Domain,
    Extern,
    Origin,
    Program,
    Reduction,
    Statement,
    Symbol,
    Tensor,
    TensorRef,
)
from nestor.ir.syntax import INFIX, LOOP_WORDS, NEGATION, quote_name
from nestor.ir.types import DType

_LOOP_TEXT = {kind: word for word, kind in LOOP_WORDS.items()}


def print_program(program: Program, *, origins: bool = True) -> str:
    """Text of a Program, ending in a newline.

    Args: origins: add each statement's origin as a comment.
    """
    printer = Printer(program.tensors, origins=origins)
    head = f"program {quote_name(program.name)}{_symbols(program.symbols)} {{"
    lines = [head, *(f"  {_tensor(t)}" for t in program.tensors)]
    monoids = [
        s.reduction.monoid
        for s in program.statements
        if isinstance(s, Statement) and s.reduction is not None
    ]
    lines += ["", *(f"  {line}" for line in printer.define_monoids(monoids))]
    lines += printer.statements(program.statements, 0, "  ")
    return _finish([*lines, "}"])


def print_nest(nest: LoopNest) -> str:
    """Text of a LoopNest, ending in a newline."""
    printer = Printer(nest.tensors)
    head = f"nest {quote_name(nest.name)}{_symbols(nest.symbols)} {{"
    lines = [head, *(f"  {_tensor(t)}" for t in nest.tensors)]
    lines += ["", *(f"  {line}" for line in printer.define_monoids(list(_nest_monoids(nest.body))))]
    lines += printer.body(nest.body, "  ")
    return _finish([*lines, "}"])


def print_expr(node: Expr, tensors: Sequence[Tensor] = ()) -> str:
    """Text of an expression; loads from ``tensors`` need no type annotation."""
    return Printer(tensors).expr(node)


def print_statement(statement: AnyStatement, tensors: Sequence[Tensor] = ()) -> str:
    """Text of one statement, without its order."""
    printer = Printer(tensors)
    if isinstance(statement, Statement) and statement.reduction is not None:
        printer.define_monoids([statement.reduction.monoid])
    return "\n".join(printer.statement(statement, ""))


def print_affine(value: Affine) -> str:
    """Text of an affine; as ``str``, but with names quoted where they must be."""
    if not any(quote_name(v) != v for v in value.variables()):
        return str(value)
    return str(_quoted(value))


def _quoted(value: Affine) -> Affine:
    """``value`` with quoted names, terms kept in their order; only good for printing."""
    terms: list[tuple[str | FloorDiv | Mod, int]] = []
    for atom, c in value.terms:
        if isinstance(atom, str):
            terms.append((quote_name(atom), c))
        else:
            terms.append((type(atom)(_quoted(atom.num), atom.den), c))
    return Affine(tuple(terms), value.const)


def _finish(lines: list[str]) -> str:
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _symbols(symbols: Sequence[Symbol]) -> str:
    if not symbols:
        return ""
    each = (
        f"{quote_name(s.name)}: {s.lower}..{'' if s.upper is None else s.upper}" for s in symbols
    )
    return f"({', '.join(each)})"


def _affines(values: Sequence[Affine]) -> str:
    return ", ".join(map(print_affine, values))


def _tensor(t: Tensor) -> str:
    text = f"{t.role} {quote_name(t.name)}: {t.dtype}[{_affines(t.shape)}]"
    if t.layout is not None:
        text += f" layout [{_affines(t.layout.physical)}] of [{_affines(t.layout.shape)}]"
    return text if t.alias_of is None else f"{text} alias {quote_name(t.alias_of)}"


def _domain(domain: Domain) -> str:
    ranges = ", ".join(
        f"{print_affine(r.lower)} <= {quote_name(r.name)} < {print_affine(r.upper)}"
        for r in domain.ranges
    )
    more = f" : {conditions(domain.constraints)}" if domain.constraints else ""
    return f"{{ {ranges}{more} }}".replace("{  ", "{ ")


def conditions(values: Sequence[Affine]) -> str:
    """``a >= 0, b >= 0``."""
    return ", ".join(f"{print_affine(v)} >= 0" for v in values)


def _origin(origin: Origin | None) -> str:
    return "" if origin is None else "  # " + " ".join(str(origin).split())


def _nest_monoids(node: Node) -> Iterator[Monoid]:
    if isinstance(node, Compute) and node.monoid is not None:
        yield node.monoid
    for child in node_children(node):
        yield from _nest_monoids(child)


class Printer:
    """Prints statements, nodes and expressions in the context of a program's tensors.

    Args:
        tensors: their types need not be repeated at each load.
        origins: print origins as comments.
    """

    def __init__(self, tensors: Sequence[Tensor], *, origins: bool = True) -> None:
        self.types: dict[str, DType] = {t.name: t.dtype for t in tensors}
        self.origins = origins
        self.vars: dict[str, DType] = {}
        self.labels: dict[Monoid, str] = {}

    # ---------------------------------------------------------------- monoids

    def define_monoids(self, monoids: Sequence[Monoid]) -> list[str]:
        """Lines that define the custom ones among ``monoids``, and a label for each."""
        lines: list[str] = []
        seen: set[int] = set()
        for m in monoids:
            if id(m) in seen or m in self.labels:
                continue
            seen.add(id(m))
            if is_builtin(m):
                self.labels[m] = f"{m.name}({m.dtypes[0]})"
                continue
            label, count = m.name, 1
            while label in self.labels.values():
                count += 1
                label = f"{m.name}.{count}"
            self.labels[m] = label
            lines.append(self._definition(m, label))
        return lines

    def _definition(self, m: Monoid, label: str) -> str:
        self.vars = {f"{side}{i}": d for side in "ab" for i, d in enumerate(m.dtypes)}
        head = f"monoid {quote_name(label)}"
        if label != m.name:
            head += f" named {quote_name(m.name)}"
        if not m.commutative:
            head += " noncommutative"
        identity = ", ".join(map(self.expr, m.identity))
        combine = ", ".join(map(self.expr, m.combine))
        self.vars = {}
        return f"{head} {{ {identity} : {combine} }}"

    def monoid(self, m: Monoid) -> str:
        """The reference to a monoid: ``sum(f32)``, or the label of its definition."""
        label = self.labels.get(m)
        if label is None:
            self.define_monoids([m])
            label = self.labels[m]
        return label if label.endswith(")") else quote_name(label)

    # ---------------------------------------------------------------- statements

    def statements(self, statements: Sequence[AnyStatement], depth: int, indent: str) -> list[str]:
        """Lines of statements that agree on the first ``depth`` entries of their orders."""
        lines: list[str] = []
        expected, at = 0, 0
        while at < len(statements):
            first = statements[at]
            prefix = first.order[: depth + 2]
            position = first.order[depth] if len(first.order) > depth else 0
            label = "" if position == expected else f"at {position}: "
            expected = int(position) + 1
            if len(first.order) <= depth + 1:
                lines += self.statement(first, indent, label)
                at += 1
                continue
            end = at
            while end < len(statements) and statements[end].order[: depth + 2] == prefix:
                end += 1
            lines.append(f"{indent}{label}seq {quote_name(str(prefix[-1]))} {{")
            lines += self.statements(statements[at:end], depth + 2, indent + "  ")
            lines.append(f"{indent}}}")
            at = end
        return lines

    def statement(self, s: AnyStatement, indent: str, label: str = "") -> list[str]:
        """Lines of one statement; ``label`` stands before its keyword."""
        note = _origin(s.origin) if self.origins else ""
        if isinstance(s, Extern):
            return [f"{indent}{label}{_extern(s)}{note}"]
        head = f"{indent}{label}statement {quote_name(s.name)} over {_domain(s.domain)}"
        if s.scatter is not None:
            head += f" scatter {s.scatter}"
        lines, values = [], s.elements
        if s.reduction is not None:
            lines.append(self._reduction(s.reduction))
            lines += self._elements(s.elements, s.reduction)
            values = s.reduction.final
            self.vars = {f"s{i}": d for i, d in enumerate(s.reduction.monoid.dtypes)}
        for write, value in zip_longest(s.writes, values):
            target = "?" if write is None else self.access(write.tensor, write.indices)
            lines.append(f"{target} = {'?' if value is None else self.expr(value)}")
        self.vars = {}
        return [head + note, *(f"{indent}  {line}" for line in lines)]

    def _reduction(self, r: Reduction) -> str:
        text = f"{'scan' if r.scan else 'reduce'} {self.monoid(r.monoid)}"
        if r.indices:
            text += f" over {', '.join(map(quote_name, r.indices))}"
        return text + (" into" if r.into else "")

    def _elements(self, elements: Sequence[Expr], r: Reduction) -> list[str]:
        lines = []
        own = r.state_indices
        for i, element in enumerate(elements):
            target = f"s{i}"
            if own is not None and i < len(own):
                names = own[i]
                target += "[*]" if names is None else f"[{', '.join(map(quote_name, names))}]"
            lines.append(f"{target} <- {self.expr(element)}")
        return lines

    # ---------------------------------------------------------------- nodes

    def body(self, node: Node, indent: str) -> list[str]:
        """Lines of what stands between a loop's braces."""
        if isinstance(node, Block) and len(node.body) != 1:
            return [line for child in node.body for line in self.node(child, indent)]
        return self.node(node, indent)

    def node(self, node: Node, indent: str) -> list[str]:
        """Lines of a nest's node."""
        match node:
            case Compute():
                return self._compute(node, indent)
            case Block():
                inner = [line for c in node.body for line in self.node(c, indent + "  ")]
                return [f"{indent}block {{", *inner, f"{indent}}}"]
            case Loop():
                return [
                    f"{indent}{loop_head(node)} {{",
                    *self.body(node.body, indent + "  "),
                    f"{indent}}}",
                ]
            case Alloc():
                buffers = ", ".join(
                    f"{quote_name(b.name)}: {b.dtype}[{_affines(b.shape)}] {b.scope}"
                    f" holds {quote_name(b.holds)}"
                    for b in node.buffers
                )
                hidden = {b.name: self.types.get(b.name) for b in node.buffers}
                self.types.update({b.name: b.dtype for b in node.buffers})
                lines = [
                    f"{indent}alloc {buffers} {{",
                    *self.body(node.body, indent + "  "),
                    f"{indent}}}",
                ]
                for name, dtype in hidden.items():
                    if dtype is None:
                        del self.types[name]
                    else:
                        self.types[name] = dtype
                return lines
            case Guard():
                lines = [f"{indent}if {conditions(node.conditions)} {{"]
                lines += self.body(node.body, indent + "  ")
                if node.orelse is not None:
                    lines.append(f"{indent}}} else {{")
                    lines += self.body(node.orelse, indent + "  ")
                return [*lines, f"{indent}}}"]

    def _compute(self, c: Compute, indent: str) -> list[str]:
        instance = ", ".join(f"{quote_name(n)}={print_affine(a)}" for n, a in c.instance)
        head = f"{indent}{c.phase} {quote_name(c.statement)}({instance})"
        if c.monoid is not None:
            head += f" with {self.monoid(c.monoid)}"
        lines = [
            f"{self.access(s.target, s.indices)} = {self.expr(v)}"
            for s, v in zip(c.stores, c.values, strict=True)
        ]
        return [f"{head} {{", *(f"{indent}  {line}" for line in lines), f"{indent}}}"]

    # ---------------------------------------------------------------- expressions

    def access(self, name: str, indices: Sequence[IndexExpr]) -> str:
        """``X[i, 2*j]``."""
        return f"{quote_name(name)}[{', '.join(self._index(i) for i in indices)}]"

    def _index(self, index: IndexExpr) -> str:
        if isinstance(index, Affine):
            return print_affine(index)
        # A bare name would read as an affine there, so a Var keeps its type.
        known: Mapping[str, DType] = self.vars
        self.vars = {}
        text = self.expr(index)
        self.vars = dict(known)
        return text

    def expr(self, node: Expr, level: int = 0) -> str:
        """Text of ``node``, in parentheses if its operator binds weaker than ``level``."""
        match node:
            case Const():
                return _const(node)
            case Index():
                suffix = "" if node.dtype is DType.i64 else f":{node.dtype}"
                return f"index({print_affine(node.value)}){suffix}"
            case Var():
                known = self.vars.get(node.name) is node.dtype
                return quote_name(node.name) + ("" if known else f":{node.dtype}")
            case Load():
                return self._load(node)
            case Unary():
                if node.op == "neg" and not isinstance(node.x, Const):
                    text = f"-{self.expr(node.x, NEGATION)}"
                    return f"({text})" if level > NEGATION else text
                return f"{node.op}({self.expr(node.x)})"
            case Binary():
                return self._binary(node, level)
            case Select():
                parts = (node.condition, node.a, node.b)
                return f"select({', '.join(map(self.expr, parts))})"
            case Cast():
                return f"{node.dtype}({self.expr(node.x)})"
            case Call():
                return f"{node.function}({', '.join(map(self.expr, node.args))}):{node.dtype}"

    def _binary(self, node: Binary, level: int) -> str:
        if node.op not in INFIX:
            return f"{node.op}({self.expr(node.a)}, {self.expr(node.b)})"
        symbol, own = INFIX[node.op]
        text = f"{self.expr(node.a, own)} {symbol} {self.expr(node.b, own + 1)}"
        return f"({text})" if own < level else text

    def _load(self, node: Load) -> str:
        text = self.access(node.tensor, node.indices)
        if self.types.get(node.tensor) is not node.dtype:
            text += f":{node.dtype}"
        if node.other is None:
            return text
        return f"({text} where {{{conditions(node.predicate)}}} else {self.expr(node.other)})"


def loop_head(loop: Loop) -> str:
    """``parallel i in 0 .. min(N, 8)``."""
    lower = _affines(loop.lower) if len(loop.lower) == 1 else f"max({_affines(loop.lower)})"
    upper = _affines(loop.upper) if len(loop.upper) == 1 else f"min({_affines(loop.upper)})"
    return f"{_LOOP_TEXT[loop.kind]} {quote_name(loop.index)} in {lower} .. {upper}"


def _const(node: Const) -> str:
    if node.dtype is DType.bool:
        return "true" if node.value else "false"
    return f"{node.value!r}:{node.dtype}"


def _extern(s: Extern) -> str:
    text = f"extern {quote_name(s.name)} = {json.dumps(s.operator)}"
    text += f"({', '.join(map(_argument, s.arguments))})"
    text += f" reads [{', '.join(map(quote_name, s.inputs))}]"
    return f"{text} writes [{', '.join(map(quote_name, s.outputs))}]"


def _argument(value: object) -> str:
    match value:
        case TensorRef():
            return f"%{quote_name(value.name)}"
        case tuple():
            return f"[{', '.join(map(_argument, value))}]"
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case _:
            return json.dumps(str(value))
