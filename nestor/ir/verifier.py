"""Check that IR keeps its rules. Each error names the statement and shows the text around it.

Only what is *definitely* wrong is reported: an access that interval arithmetic cannot decide is
left to the polyhedral checker, which proves bounds and dependences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from nestor.errors import IRError
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Expr, IndexExpr, Load, Var, distinct_nodes
from nestor.ir.injectivity import find_collision
from nestor.ir.instances import expr_variables
from nestor.ir.nest_verifier import verify_nest
from nestor.ir.printer import print_program, print_statement
from nestor.ir.program import (
    AnyStatement,
    Extern,
    Program,
    Reduction,
    Statement,
    Tensor,
    TensorRef,
    Write,
)
from nestor.ir.tensor_rules import bases_of, check_symbols, check_tensors
from nestor.ir.type_rules import (
    Scope,
    Shaped,
    check_monoid,
    extreme,
    is_surely_negative,
)
from nestor.ir.types import DType

__all__ = ["verify_nest", "verify_program"]

_READ_ONLY = ("input", "parameter", "constant")
_CONTEXT_LINES = 4


def verify_program(program: Program) -> None:
    """Raise ``IRError`` unless ``program`` keeps the rules of ``nestor.ir``."""
    _ProgramVerifier(program).run()


class _ProgramVerifier:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.symbols = frozenset(s.name for s in program.symbols)
        self.arrays = {t.name: Shaped(t.shape, t.dtype) for t in program.tensors}
        self.bases: dict[str, Tensor] = {}
        self.current: AnyStatement | None = None

    def run(self) -> None:
        """All checks, outermost first."""
        check_symbols(self.program.symbols, self.fail)
        check_tensors(self.program.tensors, self.program.symbols, self.fail)
        self.bases = bases_of(self.program.tensors)
        self._check_names()
        for statement in self.program.statements:
            self.current = statement
            if isinstance(statement, Extern):
                self._check_extern(statement)
            else:
                _StatementVerifier(self, statement).run()
        self.current = None
        self._check_orders()
        self._check_written()

    def fail(self, message: str) -> NoReturn:
        """Raise, naming the current statement and showing the text around it."""
        if self.current is None:
            raise IRError(f"program {self.program.name}: {message}")
        origin = f"\n  from {self.current.origin}" if self.current.origin else ""
        where = f"statement {self.current.name} of program {self.program.name}"
        raise IRError(f"{where}: {message}{origin}\n{self._excerpt(self.current)}")

    def _excerpt(self, statement: AnyStatement) -> str:
        """Lines of the program's text around ``statement``, its own marked with ``>``."""
        lines = print_program(self.program, origins=False).rstrip().split("\n")
        head, *rest = print_statement(statement, self.program.tensors).split("\n")
        start = next((k for k, line in enumerate(lines) if line.strip().endswith(head)), None)
        if start is None:
            return "\n".join(f"  > {line}" for line in (head, *rest))
        end = start + len(rest)
        first, last = max(0, start - _CONTEXT_LINES), min(len(lines), end + _CONTEXT_LINES + 1)
        return "\n".join(
            f"  {'>' if start <= k <= end else ' '} {k + 1:4} | {lines[k]}".rstrip()
            for k in range(first, last)
        )

    # ---------------------------------------------------------------- the whole program

    def _check_names(self) -> None:
        seen: set[str] = set()
        for s in self.program.statements:
            if s.name in seen:
                self.current = s
                self.fail(f"two statements are called {s.name}")
            seen.add(s.name)

    def _check_extern(self, s: Extern) -> None:
        refs = [r.name for r in _tensor_refs(s.arguments)]
        for name in (*s.inputs, *s.outputs, *refs):
            if name not in self.arrays:
                self.fail(f"no tensor is called {name!r}")
        for name in s.outputs:
            self.check_writable(name)
        self._check_order_form(s, ())

    def check_writable(self, name: str) -> None:
        """A tensor, or the one whose bytes it shares, may be written."""
        base = self.bases[name]
        if base.role in _READ_ONLY:
            via = "" if base.name == name else f" ({name} is an alias of it)"
            self.fail(f"{base.role} {base.name} must not be written{via}")

    def _check_order_form(self, s: AnyStatement, names: Sequence[str]) -> None:
        order = s.order
        if len(order) % 2 == 0:
            self.fail(f"order {order} must start and end with a position")
        for k, entry in enumerate(order):
            if isinstance(entry, str) != (k % 2 == 1):
                self.fail(
                    f"order {order}: entry {k} must be {'an index' if k % 2 else 'a position'}"
                )
        inner = [e for e in order if isinstance(e, str)]
        for name in inner:
            if name not in names:
                self.fail(f"order {order}: {name} is no index of the domain")
            if inner.count(name) > 1:
                self.fail(f"order {order}: {name} occurs twice")

    def _check_orders(self) -> None:
        """A position is one statement or one ``seq`` region, not both."""
        kinds: dict[tuple[int, ...], tuple[str, str]] = {}
        for s in self.program.statements:
            path: tuple[int, ...] = ()
            for k, entry in enumerate(s.order):
                if not isinstance(entry, int):
                    continue
                path = (*path, entry)
                kind = "statement" if k == len(s.order) - 1 else "seq region"
                other = kinds.setdefault(path, (kind, s.name))
                if other[1] != s.name and "statement" in (kind, other[0]):
                    self.current = s
                    place = ".".join(map(str, path))
                    self.fail(
                        f"order {s.order}: position {place} is taken by {other[1]} already;"
                        f" a position holds one statement or one seq region"
                    )

    def _check_written(self) -> None:
        """What is read or returned was written by something."""
        written: set[str] = set()
        for s in self.program.statements:
            names = s.outputs if isinstance(s, Extern) else tuple(w.tensor for w in s.writes)
            written |= {self.bases[n].name for n in names}
        for t in self.program.tensors:
            base = self.bases[t.name]
            if t.role == "output" and base.name not in written and base.role in ("output", "temp"):
                self.fail(f"nothing writes output {t.name}")
        for s in self.program.statements:
            self.current = s
            for name in _tensors_read(s):
                base = self.bases[name]
                if base.role in ("output", "temp") and base.name not in written:
                    self.fail(f"reads {base.role} {name}, which nothing writes")
        self.current = None


def _tensor_refs(value: object) -> list[TensorRef]:
    if isinstance(value, TensorRef):
        return [value]
    if isinstance(value, tuple):
        return [r for item in value for r in _tensor_refs(item)]
    return []


def _tensors_read(s: AnyStatement) -> list[str]:
    if isinstance(s, Extern):
        return list(s.inputs)
    exprs: list[Expr] = [*s.elements, *(s.reduction.final if s.reduction else ())]
    exprs += [i for w in s.writes for i in w.indices if not isinstance(i, Affine)]
    return [n.tensor for e in exprs for n in distinct_nodes(e) if isinstance(n, Load)]


class _StatementVerifier:
    """The checks of one statement."""

    def __init__(self, owner: _ProgramVerifier, statement: Statement) -> None:
        self.owner, self.s, self.fail = owner, statement, owner.fail
        self.names = statement.domain.names
        self.reduced = frozenset(statement.reduction.indices if statement.reduction else ())
        self.is_box = not statement.domain.constraints
        self.ranges: dict[str, tuple[Affine, Affine]] = {}

    def run(self) -> None:
        """Domain, order, reduction, writes, expressions."""
        self._check_domain()
        self.owner._check_order_form(self.s, self.names)
        if not self.s.writes:
            self.fail("it writes nothing")
        if self.s.reduction is None:
            self._check_pointwise()
        else:
            self._check_reduction(self.s.reduction)

    # ---------------------------------------------------------------- domain

    def _check_domain(self) -> None:
        seen = set(self.owner.symbols)
        for r in self.s.domain.ranges:
            if r.name in seen:
                kind = "symbol" if r.name in self.owner.symbols else "index"
                self.fail(f"index {r.name} has the name of another {kind}")
            for bound in (r.lower, r.upper):
                for name in sorted(bound.variables() - seen):
                    self.fail(
                        f"the range of {r.name} depends on {name}, which is no symbol and no"
                        f" index that stands before it"
                    )
            seen.add(r.name)
            self.ranges[r.name] = (r.lower, r.upper - 1)
        for c in self.s.domain.constraints:
            for name in sorted(c.variables() - seen):
                self.fail(f"constraint {c} >= 0: {name} is no index or symbol")

    def _scope(self, names: frozenset[str], vars: Mapping[str, DType] | None = None) -> Scope:
        hint = dict.fromkeys(self.reduced, "is reduced; it has no value here")
        return Scope(
            fail=self.fail,
            arrays=self.owner.arrays,
            indices=names | self.owner.symbols,
            vars=vars or {},
            check_access=self._check_access,
            hint=hint,
        )

    def _check_access(
        self, name: str, indices: tuple[IndexExpr, ...], predicate: tuple[Affine, ...]
    ) -> None:
        """Fail if an unguarded affine access surely leaves its tensor."""
        if predicate or not self.is_box or not self._surely_nonempty():
            return
        symbols = self.owner.program.symbol_ranges()
        for dim, (index, size) in enumerate(
            zip(indices, self.owner.arrays[name].shape, strict=True)
        ):
            if not isinstance(index, Affine):
                continue
            low = extreme(index, self.ranges, largest=False)
            high = extreme(index, self.ranges, largest=True)
            if low is not None and is_surely_negative(low, symbols):
                self.fail(f"{name}: index {dim}, {index}, reaches {low}, below 0")
            if high is not None and is_surely_negative(size - 1 - high, symbols):
                self.fail(f"{name}: index {dim}, {index}, reaches {high}, but the size is {size}")

    def _surely_nonempty(self) -> bool:
        symbols = self.owner.program.symbol_ranges()
        for low, high in self.ranges.values():
            least = extreme(high - low, self.ranges, largest=False)
            bound = None if least is None else least.bounds(symbols)[0]
            if bound is None or bound < 0:
                return False
        return True

    # ---------------------------------------------------------------- statements

    def _check_pointwise(self) -> None:
        s = self.s
        if len(s.elements) != len(s.writes):
            self.fail(f"{len(s.writes)} writes, but {len(s.elements)} elements")
        scope = self._scope(frozenset(self.names))
        for w, e in zip(s.writes, s.elements, strict=True):
            self._check_write(scope, w, e)
        if s.scatter is not None:
            return
        for w in s.writes:
            if any(not isinstance(i, Affine) for i in w.indices):
                self.fail(
                    f"the target of {w.tensor} depends on data: say scatter unique or last, or"
                    f" reduce into it"
                )
            self._check_injective(w, frozenset(self.names))

    def _check_write(self, scope: Scope, w: Write, value: Expr) -> None:
        array = scope.check_indices(w.tensor, w.indices)
        self.owner.check_writable(w.tensor)
        scope.expect(value, array.dtype, f"the value written to {w.tensor}")

    def _check_injective(self, w: Write, names: frozenset[str]) -> None:
        """Unordered instances of a box write distinct cells, as far as arithmetic tells."""
        free = [n for n in self.names if n in names and n not in self.s.order]
        extents: dict[str, int | None] = {}
        shift: dict[str, Affine] = {}
        for n in free:
            low, high = self.ranges[n]
            extent = high - low + 1
            if not self.is_box or extent.variables() & frozenset(self.names):
                return
            extents[n] = extent.const if extent.is_const else None
            shift[n] = affine(n) + low
        symbolic = {n for n, e in extents.items() if e is None}
        if symbolic and any(
            not self._may_exceed_one(self.ranges[n][1] - self.ranges[n][0]) for n in symbolic
        ):
            return
        indices = [i.substitute(shift) for i in w.indices if isinstance(i, Affine)]
        found = find_collision(indices, extents)
        if found is not None:
            a, b = (
                ", ".join(f"{n}={v + self.ranges[n][0]}" for n, v in point.items())
                for point in found
            )
            self.fail(
                f"instances [{a}] and [{b}] both write the same cell of {w.tensor}; order them,"
                f" or say scatter"
            )

    def _may_exceed_one(self, last: Affine) -> bool:
        """Whether some value of the symbols gives an index at least two values."""
        high = last.bounds(self.owner.program.symbol_ranges())[1]
        return high is None or high > 0

    # ---------------------------------------------------------------- reductions

    def _check_reduction(self, r: Reduction) -> None:
        s, count = self.s, len(r.monoid.identity)
        check_monoid(r.monoid, self.fail)
        self._check_reduced_indices(r)
        if s.scatter is not None:
            self.fail("scatter is for statements without a reduction; reduce into the target")
        if len(s.elements) != count:
            self.fail(f"monoid {r.monoid.name} has {count} components, not {len(s.elements)}")
        if len(r.final) != len(s.writes):
            self.fail(f"{len(s.writes)} writes, but {len(r.final)} final values")
        scope = self._scope(frozenset(self.names))
        for i, (e, dtype) in enumerate(zip(s.elements, r.monoid.dtypes, strict=True)):
            scope.expect(e, dtype, f"element s{i}")
        outer = frozenset(self.names) if r.scan or r.into else frozenset(self.names) - self.reduced
        states = {f"s{i}": d for i, d in enumerate(r.monoid.dtypes)}
        final = self._scope(outer, states)
        for w, e in zip(s.writes, r.final, strict=True):
            self._check_write(final, w, e)
        if r.state_indices is not None:
            self._check_state_indices(r, r.state_indices)
        if r.into:
            self._check_into(r)
        else:
            self._check_targets(r)

    def _check_reduced_indices(self, r: Reduction) -> None:
        if len(set(r.indices)) != len(r.indices) or not set(r.indices) <= set(self.names):
            self.fail(f"reduced indices {r.indices} must be distinct indices of the domain")
        for name, bounds in self.ranges.items():
            for other in sorted((bounds[0].variables() | bounds[1].variables()) & self.reduced):
                if name not in self.reduced:
                    self.fail(f"the range of {name} depends on {other}, which is reduced")
                if r.indices.index(other) > r.indices.index(name):
                    self.fail(f"the range of {name} depends on {other}: reduce {other} first")
        ordered = self.reduced & {e for e in self.s.order if isinstance(e, str)}
        if ordered and (r.scan or not r.into):
            self.fail(f"{sorted(ordered)[0]} is reduced and in the order: only `into` may do that")
        if r.scan and r.into:
            self.fail("a scan cannot start from its targets (scan and into)")

    def _check_into(self, r: Reduction) -> None:
        if len(self.s.writes) != len(r.monoid.identity):
            self.fail("with into, state and writes correspond one to one")
        scope = self._scope(frozenset(), {f"s{i}": d for i, d in enumerate(r.monoid.dtypes)})
        for i, (e, d) in enumerate(zip(r.final, r.monoid.dtypes, strict=True)):
            if e != Var(name=f"s{i}", dtype=d):
                self.fail(f"with into, final value {i} is s{i}, not {scope.text(e)}")

    def _check_targets(self, r: Reduction) -> None:
        for w, e in zip(self.s.writes, r.final, strict=True):
            if any(not isinstance(i, Affine) for i in w.indices):
                self.fail(f"the target of {w.tensor} depends on data: only `into` may do that")
            used = frozenset[str]().union(
                *(i.variables() for i in w.indices if isinstance(i, Affine))
            )
            if r.scan:
                self._check_injective(w, frozenset(self.names))
            else:
                self._check_injective(w, (self._value_indices(r, e) | used) - self.reduced)

    def _value_indices(self, r: Reduction, value: Expr) -> frozenset[str]:
        """The output indices that a final value may depend on."""
        every = frozenset(self.names) - self.reduced
        out = expr_variables(value) & every
        for node in distinct_nodes(value):
            if isinstance(node, Var):
                own = None if r.state_indices is None else r.state_indices[int(node.name[1:])]
                out |= every if own is None else frozenset(own)
        return out

    def _check_state_indices(self, r: Reduction, own: tuple[tuple[str, ...] | None, ...]) -> None:
        every = frozenset(self.names) - self.reduced
        if len(own) != len(r.monoid.identity):
            self.fail(f"{len(own)} state_indices for {len(r.monoid.identity)} components")
        for i, names in enumerate(own):
            if names is None:
                continue
            if not frozenset(names) <= every:
                self.fail(f"state s{i}: {names} are not all output indices of the domain")
            others = every - frozenset(names)
            used = expr_variables(self.s.elements[i]) & others
            for c in self.s.domain.constraints:
                if c.variables() & self.reduced:
                    used |= c.variables() & others
            for k in self.reduced:
                low, high = self.ranges[k]
                used |= (low.variables() | high.variables()) & others
            if used:
                self.fail(
                    f"state s{i} has the indices {list(names)}, but its element or its instances"
                    f" depend on {sorted(used)[0]}"
                )
            uses = {
                int(n.name[1:])
                for n in distinct_nodes(r.monoid.combine[i])
                if isinstance(n, Var) and n.name[1:].isdigit()
            }
            for j in sorted(uses):
                wider = own[j]
                if wider is None or not frozenset(wider) <= frozenset(names):
                    self.fail(f"state s{i} combines s{j}, which has indices that s{i} lacks")
