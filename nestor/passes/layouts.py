"""What rules wish of layouts: channels last around convolutions, sums contiguous elsewhere.

Layouts here are permutations of dimensions. Inputs and outputs keep row-major order (it is the
calling convention); parameters are packed later by the schedules that read them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Load
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Layout,
    Program,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.analysis import (
    ContractionRoles,
    ProgramFacts,
    contraction_roles,
    domain_volume,
    element_count,
    is_functional,
    is_pointwise,
    program_facts,
    weight_tensors,
)
from nestor.passes.context import PassContext
from nestor.passes.rewriting import (
    first_position,
    in_order,
    is_sequential,
    names_of,
    renumber,
    replace_statements,
)
from nestor.passes.strides import typical

MIN_ROW_PIXELS = 8
"""Pixels of a row from which vectors along it are worth while."""

MIN_GROUP_CHANNELS = 16
"""Results of one group from which they fill a vector."""


def wished_orders(
    program: Program, ctx: PassContext, *, keep_rows: bool = True
) -> dict[str, tuple[int, ...]]:
    """Dimension orders that make the channel of a convolution the unit stride, by tensor.

    A contraction with a weight asks for the weight's own index (the output channel; in a depthwise
    convolution the channel) innermost in its result, and a convolution for its input channel
    innermost in its operand. The wish travels through pointwise statements, poolings, and
    contractions without a window, to every temp that they connect. A
    contraction elsewhere asks that its reduced dimensions be contiguous in its operand.

    Args: keep_rows: small groups between an input and an output wish for nothing
        (``stays_row_major``).
    """
    return _LayoutChooser(program, ctx, keep_rows).run()


def stage_outputs(program: Program, ctx: PassContext) -> Program:
    """Let convolutions that would write an output directly write a temp first.

    Rewrite: ``Y[n,o,y,x] = Σ …`` → ``T[n,o,y,x] = Σ …; Y = T`` where ``Y`` has a fixed layout whose
        innermost dimension is not the weight's own index; ``T`` can be stored channels last.
    Legal when: functional statements of this kind alone write ``Y`` (several are the phases of a
        transposed convolution), and nothing reads it before the last of them.
    """
    facts = program_facts(program)
    weights = weight_tensors(program)
    names = names_of(program)
    temps: dict[str, Tensor] = {}
    last: dict[int, Tensor] = {}
    for tensor in program.tensors:
        writers = facts.writers.get(facts.roots[tensor.name], [])
        if tensor.role != "output" or not _are_staged(program, tensor, facts, weights, ctx):
            continue
        temp = replace(
            tensor, name=names.fresh(f"{tensor.name}_staged"), role="temp", alias_of=None
        )
        temps[tensor.name] = temp
        # Ordering: of several at one position the last of the program.
        last[max(writers, key=lambda n: (first_position(program.statements[n]), n))] = tensor
    if not temps:
        return program
    numbers = {id(s): n for n, s in enumerate(program.statements)}
    out: list[AnyStatement] = []
    for statement in in_order(program.statements):
        number, target = numbers[id(statement)], None
        if isinstance(statement, Statement) and statement.writes[0].tensor in temps:
            target = facts.tensors[statement.writes[0].tensor]
            temp = temps[target.name]
            ctx.changed("stage_outputs", statement.name, f"writes '{temp.name}' first")
            writes = (replace(statement.writes[0], tensor=temp.name),)
            statement = replace(statement, writes=writes)
        out.append(statement)
        if number in last and isinstance(statement, Statement):
            target = last[number]
            name = names.fresh(f"{target.name}_copy")
            out.append(_copy_statement(statement, temps[target.name], target, name))
    return replace_statements(program, renumber(out), (*program.tensors, *temps.values()))


def _are_staged(
    program: Program, tensor: Tensor, facts: ProgramFacts, weights: set[str], ctx: PassContext
) -> bool:
    """Whether all that writes an output is convolutions whose channels it has apart."""
    root = facts.roots[tensor.name]
    writers = [program.statements[n] for n in facts.writers.get(root, ())]
    dimensions = {_channel_apart(s, tensor, facts, weights) for s in writers}
    d = dimensions.pop() if len(dimensions) == 1 else None
    if d is None or typical(tensor.shape[d]) < ctx.options.min_channels:
        return False
    if len(writers) == 1:
        return True
    readers = [program.statements[n] for n in facts.readers.get(root, ())]
    apart = not any(is_sequential(s) for s in (*writers, *readers))
    return apart and all(facts.is_written_before(root, first_position(s)) for s in readers)


def _channel_apart(
    statement: AnyStatement, tensor: Tensor, facts: ProgramFacts, weights: set[str]
) -> int | None:
    """The dimension of ``tensor`` that a convolution's own channel moves, unless it is the
    innermost one; None also for any other statement."""
    roles = contraction_roles(statement, facts.tensors)
    if roles is None or not isinstance(statement, Statement) or not is_functional(statement):
        return None
    write = statement.writes[0]
    if len(statement.writes) != 1 or write.tensor != tensor.name:
        return None
    if not any(x.tensor in weights for x in (roles.a, roles.b)):
        return None
    channel = _output_channel(statement, roles)
    d = None if channel is None else dimension_of(write.indices, channel)
    return None if d == len(tensor.shape) - 1 else d


def stays_row_major(
    program: Program, statement: Statement, roles: ContractionRoles, facts: ProgramFacts
) -> bool:
    """Whether a convolution of small groups between an input and an output keeps their layout,
    also where a bias or an activation stands between it and the output.

    Its vectors then run along the pixels of a row and its weights are broadcast. Channels last
    would transpose both arrays, for vectors that small groups fill in part, or (depthwise) for a
    sum as short as a window, which costs no more than the transposing.
    """
    if not roles.windows or not roles.batch:
        return False
    if domain_volume(statement.domain, frozenset(roles.n)) >= MIN_GROUP_CHANNELS:
        return False
    if not _is_returned(program, statement.writes[0].tensor, facts):
        return False
    last = statement.writes[0].indices[-1]
    windowed = {free for free, _ in roles.windows}
    if not isinstance(last, Affine) or len(last.variables() & windowed) != 1:
        return False
    pixels = domain_volume(statement.domain, frozenset(last.variables()))
    if pixels < MIN_ROW_PIXELS:
        return False
    loads = [x for x in (roles.a, roles.b) if _window_variables(x, roles)]
    return len(loads) == 1 and _is_given(program, loads[0].tensor, facts)


def _is_returned(program: Program, name: str, facts: ProgramFacts) -> bool:
    """Whether a tensor is an output, or read only by what makes one of it element by element,
    in the same order and with nothing else of its size but inputs."""
    if facts.tensors[name].role == "output":
        return True
    readers = [program.statements[n] for n in facts.readers.get(name, ())]
    if not facts.is_private_temp(name) or len(readers) != 1 or not is_pointwise(readers[0]):
        return False
    (reader,) = readers
    assert isinstance(reader, Statement)
    tensors = [facts.tensors[w.tensor] for w in reader.writes]
    if len(tensors) != 1 or tensors[0].role != "output":
        return False
    size = element_count(facts.tensors[name])
    loads = [x for x in reader.loads if element_count(facts.tensors[x.tensor]) >= size]
    return all(
        x.indices[-1] == reader.writes[0].indices[-1]
        and (x.tensor == name or facts.tensors[x.tensor].role == "input")
        for x in loads
    )


def _is_given(program: Program, name: str, facts: ProgramFacts) -> bool:
    """Whether a tensor is an input, or a copy of one (with a border)."""
    if facts.tensors[name].role == "input":
        return True
    writers = [program.statements[n] for n in facts.writers.get(facts.roots[name], ())]
    elements = [e for w in writers if isinstance(w, Statement) for e in w.elements]
    return len(writers) == 1 == len(elements) and all(
        isinstance(e, Load) and facts.tensors[e.tensor].role == "input" for e in elements
    )


def _copy_statement(like: Statement, source: Tensor, target: Tensor, name: str) -> Statement:
    ranges = tuple(
        IndexRange(name=f"d{d}", lower=affine(0), upper=e) for d, e in enumerate(target.shape)
    )
    indices = tuple(variable(r.name) for r in ranges)
    return Statement(
        name=name,
        domain=Domain(ranges=ranges),
        order=like.order[:1],
        writes=(Write(tensor=target.name, indices=indices),),
        elements=(Load(tensor=source.name, indices=indices, dtype=source.dtype),),
        origin=like.origin,
    )


@dataclass(slots=True)
class _LayoutChooser:
    program: Program
    ctx: PassContext
    keep_rows: bool
    facts: ProgramFacts = field(init=False)
    weights: set[str] = field(init=False)
    inner: dict[str, int] = field(default_factory=dict)
    orders: dict[str, tuple[int, ...]] = field(default_factory=dict)
    work: deque[str] = field(default_factory=deque)
    roles: dict[int, ContractionRoles] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.facts = program_facts(self.program)
        self.weights = weight_tensors(self.program)
        for number, statement in enumerate(self.program.statements):
            roles = contraction_roles(statement, self.facts.tensors)
            if roles is not None:
                self.roles[number] = roles

    def run(self) -> dict[str, tuple[int, ...]]:
        for number, roles in self.roles.items():
            self._ask_for_channels(number, roles)
        while self.work:
            self._spread(self.work.popleft())
        for name, d in self.inner.items():
            rank = len(self.facts.tensors[name].shape)
            self.orders[name] = (*(x for x in range(rank) if x != d), d)
        for number, roles in self.roles.items():
            if not roles.windows:
                self._ask_for_sums(number, roles)
        return self.orders

    # ---------------------------------------------------------------------------- convolutions

    def _ask_for_channels(self, number: int, roles: ContractionRoles) -> None:
        """The weight's own index innermost in the result: the packed weight is then the vector
        operand, and nothing else need have unit stride."""
        statement = self.program.statements[number]
        assert isinstance(statement, Statement)
        if not any(x.tensor in self.weights for x in (roles.a, roles.b)):
            return
        if self.keep_rows and stays_row_major(self.program, statement, roles, self.facts):
            return
        channel = _output_channel(statement, roles)
        if channel is not None:
            write = statement.writes[0]
            self._want(write.tensor, dimension_of(write.indices, channel))
        for load in (roles.a, roles.b):
            windowed = _window_variables(load, roles)
            if windowed and load.tensor not in self.weights:
                self._want(load.tensor, _input_channel(load, roles, windowed))

    def _want(self, name: str, d: int | None) -> None:
        """Ask that dimension ``d`` of a temp be innermost; the first wish counts."""
        if d is None or name in self.inner or not self._is_free(name):
            return
        if typical(self.facts.tensors[name].shape[d]) < self.ctx.options.min_channels:
            return
        self.inner[name] = d
        self.work.append(name)

    def _is_free(self, name: str) -> bool:
        tensor = self.facts.tensors[name]
        return (
            self.facts.is_private_temp(name) and tensor.layout is None and name not in self.weights
        )

    def _spread(self, name: str) -> None:
        """Carry a tensor's wish over every statement that touches it."""
        numbers = {*self.facts.readers.get(name, ()), *self.facts.writers.get(name, ())}
        for number in sorted(numbers):
            statement = self.program.statements[number]
            if not isinstance(statement, Statement):
                continue
            if number in self.roles:
                self._spread_over_contraction(statement, self.roles[number], name)
                continue
            for index in self._moving(statement, name):
                for other, indices in statement_accesses(statement):
                    if other != name:
                        self._want(other, dimension_of(indices, index))

    def _spread_over_contraction(
        self, statement: Statement, roles: ContractionRoles, name: str
    ) -> None:
        """Result channels last ↔ operand channels last, for a contraction without a window."""
        if roles.windows or not any(x.tensor in self.weights for x in (roles.a, roles.b)):
            return
        channel = _output_channel(statement, roles)
        if channel is None:
            return
        write = statement.writes[0]
        self._want(write.tensor, dimension_of(write.indices, channel))
        for load in (roles.a, roles.b):
            if load.tensor not in self.weights and len(roles.k) == 1:
                self._want(load.tensor, dimension_of(load.indices, roles.k[0]))

    def _moving(self, statement: Statement, name: str) -> list[str]:
        """Indices that move the wished-for dimension of ``name`` in this statement."""
        found: list[str] = []
        for tensor, indices in statement_accesses(statement):
            if tensor == name:
                index = indices[self.inner[name]]
                if isinstance(index, Affine):
                    found += [a for a, c in index.terms if isinstance(a, str) and c == 1]
        return [n for n in dict.fromkeys(found) if n in statement.domain.names]

    # ---------------------------------------------------------------------------- plain sums

    def _ask_for_sums(self, number: int, roles: ContractionRoles) -> None:
        """``x[b, h, s, d]`` summed over h and d is best stored as b, s, h, d."""
        for load in (roles.a, roles.b):
            name = load.tensor
            if len(roles.k) < 2 or name in self.orders or not self._is_free(name):
                continue
            places = [dimension_of(load.indices, k) for k in roles.k]
            rank = len(load.indices)
            if any(p is None for p in places) or len(set(places)) < len(places):
                continue
            last = [p for p in places if p is not None]
            if last[-1] != rank - 1:
                continue
            self.orders[name] = (*(d for d in range(rank) if d not in last), *last)


def statement_accesses(statement: Statement) -> list[tuple[str, tuple[object, ...]]]:
    """(tensor, indices) of each write and each load."""
    found: list[tuple[str, tuple[object, ...]]] = [(w.tensor, w.indices) for w in statement.writes]
    found += [(x.tensor, x.indices) for x in statement.loads]
    return found


def dimension_of(indices: tuple[object, ...], name: str) -> int | None:
    """The dimension that an index moves by one, if it moves no other."""
    found: int | None = None
    for d, index in enumerate(indices):
        if isinstance(index, Affine) and name in index.variables():
            if index.coefficient(name) != 1 or found is not None:
                return None
            found = d
    return found


def _window_variables(load: Load, roles: ContractionRoles) -> set[str]:
    inside = {v for i in load.indices if isinstance(i, Affine) for v in i.variables()}
    return {v for pair in roles.windows if set(pair) <= inside for v in pair}


def _output_channel(statement: Statement, roles: ContractionRoles) -> str | None:
    """The index that should be innermost in the result: of the weight alone, else of both."""
    windowed = {free for free, _ in roles.windows}
    for names in (roles.n, roles.batch):
        plain = [n for n in names if n not in windowed]
        if plain:
            return max(plain, key=lambda n: typical(statement.domain.range_of(n).upper))
    return None


def _input_channel(load: Load, roles: ContractionRoles, windowed: set[str]) -> int | None:
    """The operand's dimension of the reduced channel; in a depthwise convolution, of the batch."""
    for names in (roles.k, roles.batch):
        for name in reversed(names):
            if name not in windowed:
                d = dimension_of(load.indices, name)
                if d is not None:
                    return d
    return None


def permuted(tensor: Tensor, order: tuple[int, ...]) -> Layout | None:
    """The layout that stores dimensions in ``order``, outermost first; None for row-major."""
    if order == tuple(range(len(tensor.shape))):
        return None
    return Layout(
        physical=tuple(variable(f"d{d}") for d in order),
        shape=tuple(tensor.shape[d] for d in order),
    )
