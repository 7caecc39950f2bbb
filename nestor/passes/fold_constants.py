"""Split off what depends on weights alone, so that it runs once and not at every call."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace

from nestor.ir.affine import variable
from nestor.ir.expr import Expr, Load, Var, loads, map_affines, map_children, walk
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Program,
    Role,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.analysis import (
    contraction_roles,
    expression_variables,
    expression_work,
    program_facts,
    read_tensors,
    tensor_bytes,
    weight_tensors,
    written_tensors,
)
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.rewriting import (
    Names,
    extent_of,
    in_order,
    map_expressions,
    names_of,
    renumber,
    replace_statements,
)

_OUTLINE = "outline_weight_expressions"
_HOIST = "hoist_weight_program"


def outline_weight_expressions(program: Program, ctx: PassContext) -> Program:
    """Give every expression that depends on weights alone a statement of its own.

    Rewrite: ``y[n,c] = x[n,c] + b[c]*g[c]`` → ``t[c] = b[c]*g[c]; y[n,c] = x[n,c] + t[c]``, which
        ``hoist_weight_program`` then moves out of the call.
    Legal when: always (expressions are pure); done where the result is not much larger than what it
        is made of.
    """
    return _Outliner(program, ctx).run()


@dataclass(slots=True)
class _Outliner:
    program: Program
    ctx: PassContext
    names: Names = field(init=False)
    weights: set[str] = field(init=False)
    tensors: dict[str, Tensor] = field(init=False)
    known: dict[Hashable, str] = field(default_factory=dict)
    added: list[Statement] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = names_of(self.program)
        self.weights = weight_tensors(self.program)
        self.tensors = {t.name: t for t in self.program.tensors}

    def run(self) -> Program:
        out: list[AnyStatement] = []
        for statement in in_order(self.program.statements):
            if isinstance(statement, Statement):
                # What is weight work as a whole moves as a whole.
                if not {w.tensor for w in statement.writes} <= self.weights:
                    statement = self._outline(statement)
                out += self.added
                self.added = []
            out.append(statement)
        if len(out) == len(self.program.statements):
            return self.program
        return replace_statements(self.program, renumber(out), self.tensors.values())

    def _outline(self, statement: Statement) -> Statement:
        if not any(x.tensor in self.weights for e in statement.expressions() for x in loads(e)):
            return statement

        def visit(node: Expr) -> Expr:
            if self._is_worth(node):
                new = self._extract(statement, node)
                if new is not None:
                    return new
            return map_children(node, visit)

        return map_expressions(statement, visit)

    def _is_worth(self, node: Expr) -> bool:
        if isinstance(node, Load) or expression_work(node) == 0:
            return False
        names = [x.tensor for x in loads(node)]
        return bool(names) and all(n in self.weights for n in names) and _is_closed(node)

    def _extract(self, statement: Statement, node: Expr) -> Expr | None:
        """A load of a new tensor that holds ``node``; None where that cannot or should not be."""
        used = expression_variables(node)
        ranges = [r for r in statement.domain.ranges if r.name in used]
        if len(ranges) != len(used) or any(not _is_static(r) for r in ranges):
            return None
        shape = tuple(extent_of(r) for r in ranges)
        tensor = Tensor(name="", shape=shape, dtype=node.dtype, role="temp")
        if not is_small_enough(tensor, {x.tensor for x in loads(node)}, self.tensors, self.ctx):
            self.ctx.refused(
                _OUTLINE, statement.name, "the result is much larger than its operands"
            )
            return None
        canonical = {r.name: variable(f"w{p}") for p, r in enumerate(ranges)}
        element = map_affines(node, lambda a: a.substitute(canonical))
        key = (element, tuple((r.lower, r.upper) for r in ranges))
        name = self.known.get(key)
        if name is None:
            name = self.names.fresh(f"{statement.name}_w")
            self.known[key] = name
            self.tensors[name] = replace(tensor, name=name)
            self.weights.add(name)
            self.added.append(_pointwise(name, ranges, element, statement))
            self.ctx.changed(_OUTLINE, statement.name, f"'{name}' depends on weights alone")
        indices = tuple(variable(r.name) - r.lower for r in ranges)
        return Load(tensor=name, indices=indices, dtype=node.dtype)


def _pointwise(
    name: str, ranges: list[IndexRange], element: Expr, statement: Statement
) -> Statement:
    new = tuple(replace(r, name=f"w{p}") for p, r in enumerate(ranges))
    return Statement(
        name=f"{name}_s",
        domain=Domain(ranges=new),
        order=statement.order[:1],
        writes=(Write(tensor=name, indices=tuple(variable(r.name) - r.lower for r in new)),),
        elements=(element,),
        origin=statement.origin,
    )


def _is_static(r: IndexRange) -> bool:
    return r.lower.is_const and r.upper.is_const


def _is_closed(node: Expr) -> bool:
    """No ``Var`` (a reduction's state) occurs."""
    return not any(isinstance(n, Var) for n in walk(node))


def is_small_enough(
    tensor: Tensor, sources: Iterable[str], tensors: dict[str, Tensor], ctx: PassContext
) -> bool:
    """Whether keeping ``tensor`` beside its sources does not blow memory up."""
    size = tensor_bytes(tensor)
    if size <= ctx.options.max_hoisted_bytes:
        return True
    return size <= ctx.options.max_hoisted_growth * sum(tensor_bytes(tensors[n]) for n in sources)


def hoist_weight_program(program: Program, ctx: PassContext) -> tuple[Program, Program]:
    """Split a Program into one that runs at every call and one that runs when weights change.

    Args: program: any verified Program.
    Returns: (main, weight program). Results of the weight program have the role *output* there and
        *parameter* in main (*constant* if no parameter went in), under the same name.
    Rewrite: ``w2[c] = w[c]*g[c]; y = f(x, w2)`` → main ``y = f(x, w2)``, weights ``w2 = w*g``.
    Legal when: a statement reads only parameters, constants and such results, has static extents,
        and writes temps. Not done where the result is much larger than what it is made of.
    """
    tensors = {t.name: t for t in program.tensors}
    facts = program_facts(program)
    hoisted = {n for n in weight_tensors(program) if tensors[n].role == "temp"}
    hoisted = _keep_affordable(program, hoisted, tensors, ctx)
    moved: list[AnyStatement] = []
    kept: list[AnyStatement] = []
    for statement in in_order(program.statements):
        names = set(written_tensors(statement))
        (moved if names <= hoisted else kept).append(statement)
    if not moved:
        return program, Program(name=f"{program.name}_weights")
    wanted = {n for s in kept for n in read_tensors(s)} & hoisted
    changing = _depends_on_parameters(moved, tensors)
    for name in sorted(wanted):
        ctx.changed(_HOIST, name, "computed once from the weights")
    roles: dict[str, Role] = {n: "parameter" if n in changing else "constant" for n in wanted}
    main = replace(
        program,
        statements=tuple(kept),
        tensors=tuple(
            replace(t, role=roles[t.name]) if t.name in wanted else t
            for t in program.tensors
            if t.name in wanted or t.name not in hoisted
        ),
    )
    weights = Program(
        name=f"{program.name}_weights",
        tensors=tuple(_weight_side(tensors, facts.roots, moved, wanted)),
        statements=tuple(moved),
    )
    return remove_dead_code(main, PassContext()), remove_dead_code(weights, PassContext())


def _keep_affordable(
    program: Program, hoisted: set[str], tensors: dict[str, Tensor], ctx: PassContext
) -> set[str]:
    """Drop results that would cost much memory and little time, and what follows from them."""
    kept = set(hoisted)
    for statement in in_order(program.statements):
        names = set(written_tensors(statement))
        if not names & kept:
            continue
        assert isinstance(statement, Statement)
        sources = set(read_tensors(statement))
        reason = None
        if not names <= kept or any(n in hoisted and n not in kept for n in sources):
            reason = "it needs a result that stays in the call"
        else:
            size_ok = all(is_small_enough(tensors[n], sources, tensors, ctx) for n in names)
            if not size_ok and contraction_roles(statement) is None:
                reason = "the result is much larger than what it is made of"
        if reason is not None:
            ctx.refused(_HOIST, statement.name, reason)
            kept -= names
    # A tensor written by several statements stays whole.
    for statement in program.statements:
        names = set(written_tensors(statement))
        if not names <= kept:
            kept -= names
    return kept


def _depends_on_parameters(moved: list[AnyStatement], tensors: dict[str, Tensor]) -> set[str]:
    changing = {n for n, t in tensors.items() if t.role == "parameter"}
    for statement in moved:
        if any(n in changing for n in read_tensors(statement)):
            changing |= set(written_tensors(statement))
    return changing


def _weight_side(
    tensors: dict[str, Tensor], roots: dict[str, str], moved: list[AnyStatement], wanted: set[str]
) -> Iterable[Tensor]:
    used: set[str] = set()
    for statement in moved:
        for name in (*read_tensors(statement), *written_tensors(statement)):
            used |= {name, roots[name]}
    for name, tensor in tensors.items():
        if name in used:
            yield replace(tensor, role="output") if name in wanted else tensor
