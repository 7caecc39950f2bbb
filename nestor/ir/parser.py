"""Read the IR's text back: ``parse_program(print_program(p)) == p``, and likewise for nests.

Errors are ``IRError`` with line, column, the line itself and a caret. The parser checks syntax and
that names of tensors resolve; the verifier checks the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal, TypeVar, cast

from nestor.ir.affine import Affine
from nestor.ir.expr import Const, Expr
from nestor.ir.expr_parser import ExprParser
from nestor.ir.loopnest import (
    Alloc,
    Block,
    Buffer,
    Compute,
    Guard,
    Loop,
    LoopKind,
    LoopNest,
    Node,
    Phase,
    Scope,
    Store,
)
from nestor.ir.monoid import Monoid, builtin_monoid
from nestor.ir.program import (
    AnyStatement,
    Domain,
    Extern,
    IndexRange,
    Layout,
    Order,
    Program,
    Reduction,
    Role,
    Statement,
    Symbol,
    Tensor,
    TensorRef,
    Write,
)
from nestor.ir.syntax import LOOP_WORDS, PHASES, ROLES, SCOPES
from nestor.ir.types import DType

T = TypeVar("T")
_STATEMENT_WORDS = ("statement", "extern", "seq", "at")


def parse_program(text: str) -> Program:
    """The Program of a text as ``print_program`` writes it.

    Raises: ``IRError`` with line and column.
    """
    parser = _Parser(text)
    return parser.guarded(parser.program)


def parse_nest(text: str) -> LoopNest:
    """The LoopNest of a text as ``print_nest`` writes it.

    Raises: ``IRError`` with line and column.
    """
    parser = _Parser(text)
    return parser.guarded(parser.nest)


def parse_affine(text: str) -> Affine:
    """The affine of a text such as ``2*i + (j + 1)//4``."""
    parser = _Parser(text)
    return parser.guarded(lambda: parser.whole(parser.affine))


def parse_expr(text: str, types: dict[str, DType] | None = None) -> Expr:
    """The expression of a text; ``types`` gives the types of tensors that it loads."""
    parser = _Parser(text)
    parser.types.update(types or {})
    return parser.guarded(lambda: parser.whole(parser.expr))


class _Parser(ExprParser):
    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.monoids: dict[str, Monoid] = {}

    def guarded(self, read: Callable[[], T]) -> T:
        """``read()``; what the nodes themselves refuse becomes an error at the current token."""
        try:
            return read()
        except (ValueError, OverflowError) as error:
            raise self.error(str(error)) from error
        except RecursionError:
            raise self.error("nested too deeply") from None

    def whole(self, read: Callable[[], T]) -> T:
        """``read()``, and nothing may follow."""
        value = read()
        self.finish()
        return value

    def finish(self) -> None:
        """Raise unless everything was read."""
        if self.peek.kind != "end":
            raise self.error(f"expected the end of the text, found {self.peek.text!r}")

    # ---------------------------------------------------------------- heads

    def program(self) -> Program:
        """``program NAME(SYMBOLS) { TENSORS MONOIDS STATEMENTS }``."""
        name, symbols, tensors = self._head("program")
        statements = self._statements(())
        self.expect("}")
        self.finish()
        return Program(name=name, symbols=symbols, tensors=tensors, statements=tuple(statements))

    def nest(self) -> LoopNest:
        """``nest NAME(SYMBOLS) { TENSORS MONOIDS NODES }``."""
        name, symbols, tensors = self._head("nest")
        body = self._body()
        self.finish()
        return LoopNest(name=name, symbols=symbols, tensors=tensors, body=body)

    def _head(self, word: str) -> tuple[str, tuple[Symbol, ...], tuple[Tensor, ...]]:
        self.expect(word)
        name = self.name(f"the {word}")
        symbols = self.items(self._symbol, ")") if self.take("(") else ()
        self.expect("{")
        tensors = []
        while self.sees(*ROLES):
            tensors.append(self._tensor())
        while self.take("monoid"):
            self._define_monoid()
        return name, symbols, tuple(tensors)

    def _symbol(self) -> Symbol:
        name = self.name("a symbol")
        self.expect(":")
        lower = self.integer()
        self.expect("..")
        upper = None if self.sees(",", ")") else self.integer()
        return Symbol(name=name, lower=lower, upper=upper)

    def _affines(self) -> tuple[Affine, ...]:
        self.expect("[")
        return self.items(self.affine, "]")

    def _tensor(self) -> Tensor:
        role = cast(Role, self.next().text)
        name = self.name("a tensor")
        if name in self.types:
            raise self.error(f"tensor {name!r} is declared twice")
        self.expect(":")
        dtype = self.dtype()
        shape = self._affines()
        layout = None
        if self.take("layout"):
            physical = self._affines()
            self.expect("of")
            layout = Layout(physical=physical, shape=self._affines())
        alias_of = self.name("a tensor") if self.take("alias") else None
        self.types[name] = dtype
        return Tensor(
            name=name, shape=shape, dtype=dtype, role=role, layout=layout, alias_of=alias_of
        )

    # ---------------------------------------------------------------- monoids

    def _define_monoid(self) -> None:
        label = self.name("a monoid")
        name = self.name("a monoid") if self.take("named") else label
        commutative = not self.take("noncommutative")
        self.expect("{")
        identity = self.items(self._constant, ":")
        self.vars = {f"{side}{i}": c.dtype for side in "ab" for i, c in enumerate(identity)}
        at = self.peek.start
        combine = self.items(self.expr, "}")
        self.vars = {}
        if len(combine) != len(identity):
            raise self.error_at(
                at, f"{len(identity)} identities, but {len(combine)} expressions to combine"
            )
        self.monoids[label] = Monoid(
            name=name, identity=identity, combine=combine, commutative=commutative
        )

    def _constant(self) -> Const:
        at = self.peek.start
        value = self.expr()
        if not isinstance(value, Const):
            raise self.error_at(at, "an identity is a constant, e.g. 0.0:f32")
        return value

    def _monoid(self) -> Monoid:
        token = self.peek
        if not self.take("min", "max"):
            self.name("a monoid")
        if self.take("("):
            dtype = self.dtype()
            self.expect(")")
            builtin = builtin_monoid(token.text, dtype)
            if builtin is None:
                raise self.error_at(token.start, f"no monoid {token.text}({dtype}) is built in")
            return builtin
        if token.text not in self.monoids:
            raise self.error_at(
                token.start, f"monoid {token.text!r} is not defined; a builtin needs its type"
            )
        return self.monoids[token.text]

    # ---------------------------------------------------------------- statements

    def _statements(self, prefix: Order) -> list[AnyStatement]:
        """Statements up to a closing brace; ``prefix`` is the order that they share."""
        out: list[AnyStatement] = []
        position = 0
        while self.sees(*_STATEMENT_WORDS):
            if self.take("at"):
                position = self.integer()
                self.expect(":")
            order = (*prefix, position)
            word = self.expect("statement", "extern", "seq")
            if word == "seq":
                index = self.name("an index")
                self.expect("{")
                out += self._statements((*order, index))
                self.expect("}")
            elif word == "extern":
                out.append(self._extern(order))
            else:
                out.append(self._statement(order))
            position += 1
        return out

    def _statement(self, order: Order) -> Statement:
        name = self.name("a statement")
        self.expect("over")
        domain = self._domain()
        scatter: Literal["unique", "last"] | None = None
        if self.take("scatter"):
            at, word = self.peek.start, self.next().text
            if word not in ("unique", "last"):
                raise self.error_at(at, f"scatter is unique or last, found {word!r}")
            scatter = cast(Literal["unique", "last"], word)
        if not self.sees("reduce", "scan"):
            writes, values = self._assignments()
            return Statement(
                name=name,
                domain=domain,
                order=order,
                writes=writes,
                elements=values,
                scatter=scatter,
            )
        scan = self.next().text == "scan"
        monoid = self._monoid()
        indices: list[str] = []
        if self.take("over"):
            indices.append(self.name("an index"))
            while self.take(","):
                indices.append(self.name("an index"))
        into = self.take("into")
        elements, own = self._elements()
        self.vars = {f"s{i}": d for i, d in enumerate(monoid.dtypes)}
        writes, final = self._assignments()
        self.vars = {}
        return Statement(
            name=name,
            domain=domain,
            order=order,
            writes=writes,
            elements=elements,
            reduction=Reduction(
                indices=tuple(indices),
                monoid=monoid,
                final=final,
                scan=scan,
                into=into,
                state_indices=own,
            ),
            scatter=scatter,
        )

    def _domain(self) -> Domain:
        self.expect("{")
        ranges: list[IndexRange] = []
        while not self.sees("}", ":"):
            if ranges:
                self.expect(",")
            lower = self.affine()
            self.expect("<=")
            name = self.name("an index")
            self.expect("<")
            ranges.append(IndexRange(name=name, lower=lower, upper=self.affine()))
        constraints: tuple[Affine, ...] = ()
        if self.expect("}", ":") == ":":
            constraints = self.items(self.condition, "}")
        return Domain(ranges=tuple(ranges), constraints=constraints)

    def _assignments(self) -> tuple[tuple[Write, ...], tuple[Expr, ...]]:
        """``X[i] = value`` lines."""
        writes, values = [], []
        while self.peek.kind == "name":
            name = self.name("a tensor")
            self.expect("[")
            indices = self.items(self.index, "]")
            self.expect("=")
            writes.append(Write(tensor=name, indices=indices))
            values.append(self.expr())
        return tuple(writes), tuple(values)

    def _elements(
        self,
    ) -> tuple[tuple[Expr, ...], tuple[tuple[str, ...] | None, ...] | None]:
        """``s0[q] <- value`` lines: the elements and the state's own indices."""
        elements: list[Expr] = []
        own: list[tuple[str, ...] | None] = []
        while self._sees_element():
            at, name = self.peek.start, self.name("a state component")
            if name != f"s{len(elements)}":
                raise self.error_at(at, f"expected the element s{len(elements)}, found {name!r}")
            if self.take("["):
                if self.take("*"):
                    self.expect("]")
                    own.append(None)
                else:
                    own.append(self.items(lambda: self.name("an index"), "]"))
            self.expect("<-")
            elements.append(self.expr())
        if own and len(own) != len(elements):
            raise self.error("either all elements name the indices of their state, or none")
        return tuple(elements), tuple(own) if own else None

    def _sees_element(self) -> bool:
        """Whether a ``<-`` comes before the next ``=`` on this line of the statement."""
        at = self.at
        if self.tokens[at].kind != "name":
            return False
        at += 1
        if self.tokens[at].text == "[":
            while self.tokens[at].kind != "end" and self.tokens[at].text != "]":
                at += 1
            at += 1
        return at < len(self.tokens) and self.tokens[at].text == "<-"

    def _extern(self, order: Order) -> Extern:
        name = self.name("a statement")
        self.expect("=")
        operator = self._string()
        self.expect("(")
        arguments = self.items(self._argument, ")")
        self.expect("reads")
        self.expect("[")
        inputs = self.items(lambda: self.name("a tensor"), "]")
        self.expect("writes")
        self.expect("[")
        outputs = self.items(lambda: self.name("a tensor"), "]")
        return Extern(
            name=name,
            operator=operator,
            arguments=arguments,
            inputs=inputs,
            outputs=outputs,
            order=order,
        )

    def _string(self) -> str:
        if self.peek.kind != "string":
            raise self.error(f"expected a string, found {self.peek.text!r}")
        return str(json.loads(self.next().text))

    def _argument(self) -> object:
        if self.peek.kind == "string":
            return self._string()
        if self.take("%"):
            return TensorRef(name=self.name("a tensor"))
        if self.take("["):
            return self.items(self._argument, "]")
        if self.take("none"):
            return None
        if self.sees("true", "false"):
            return self.next().text == "true"
        negative = self.take("-")
        token = self.next()
        if token.kind not in ("int", "float") and token.text not in ("inf", "nan"):
            raise self.error_at(token.start, f"expected an argument, found {token.text!r}")
        value: int | float = int(token.text) if token.kind == "int" else float(token.text)
        return -value if negative else value

    # ---------------------------------------------------------------- nodes

    def _body(self) -> Node:
        """Nodes up to and including a closing brace; a single one stands for itself."""
        nodes = []
        while not self.take("}"):
            nodes.append(self._node())
        return nodes[0] if len(nodes) == 1 else Block(body=tuple(nodes))

    def _node(self) -> Node:
        word = self.peek.text if self.peek.kind == "keyword" else ""
        if word in LOOP_WORDS:
            return self._loop()
        if word in PHASES:
            return self._compute()
        if self.take("block"):
            self.expect("{")
            nodes = []
            while not self.take("}"):
                nodes.append(self._node())
            return Block(body=tuple(nodes))
        if self.take("alloc"):
            return self._alloc()
        if self.take("if"):
            conditions = self.items(self.condition, "{")
            body = self._body()
            orelse = None
            if self.take("else"):
                self.expect("{")
                orelse = self._body()
            return Guard(conditions=conditions, body=body, orelse=orelse)
        raise self.error(
            f"expected a loop, a compute, alloc, if or block, found {self.peek.text!r}"
        )

    def _loop(self) -> Loop:
        kind = cast(LoopKind, LOOP_WORDS[self.next().text])
        index = self.name("an index")
        self.expect("in")
        lower = self._bounds("max")
        self.expect("..")
        upper = self._bounds("min")
        self.expect("{")
        return Loop(index=index, lower=lower, upper=upper, kind=kind, body=self._body())

    def _bounds(self, word: str) -> tuple[Affine, ...]:
        if self.take(word):
            self.expect("(")
            return self.items(self.affine, ")")
        return (self.affine(),)

    def _alloc(self) -> Alloc:
        buffers = self.items(self._buffer, "{")
        hidden = {b.name: self.types.get(b.name) for b in buffers}
        self.types.update({b.name: b.dtype for b in buffers})
        body = self._body()
        for name, dtype in hidden.items():
            if dtype is None:
                del self.types[name]
            else:
                self.types[name] = dtype
        return Alloc(buffers=buffers, body=body)

    def _buffer(self) -> Buffer:
        name = self.name("a buffer")
        self.expect(":")
        dtype = self.dtype()
        shape = self._affines()
        scope = cast(Scope, self.expect(*SCOPES))
        self.expect("holds")
        holds = self.name("a tensor or statement")
        return Buffer(name=name, dtype=dtype, shape=shape, scope=scope, holds=holds)

    def _compute(self) -> Compute:
        phase = cast(Phase, self.next().text)
        at = self.peek.start
        statement = self.name("a statement")
        self.expect("(")
        instance = self.items(self._binding, ")")
        monoid = self._monoid() if self.take("with") else None
        self.expect("{")
        writes, values = self._assignments()
        self.expect("}")
        if (monoid is not None) != (phase in ("update", "merge")):
            need = "needs a" if monoid is None else "has no"
            raise self.error_at(at, f"phase {phase} {need} monoid (with …)")
        return Compute(
            statement=statement,
            phase=phase,
            instance=instance,
            stores=tuple(Store(target=w.tensor, indices=w.indices) for w in writes),
            values=values,
            monoid=monoid,
        )

    def _binding(self) -> tuple[str, Affine]:
        name = self.name("an index")
        self.expect("=")
        return name, self.affine()
