"""Partition a Program's statements into kernels: what runs together and shares its outer loops.

Greedy, in program order: a statement joins the group of one of its producers when the two can share
loops (their accesses to the tensors between them agree on some indices), when nothing outside the
group stands between them, and when it pays. Every refusal is logged with its reason.

Shared dimensions of a group are *rows*: the same point of all statements, e.g. (batch, token) for a
normalisation, (batch, head, query) for an attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from nestor.ir.affine import Affine
from nestor.ir.expr import Load, loads
from nestor.ir.program import (
    AnyStatement,
    Extern,
    Kernel,
    Program,
    Role,
    Statement,
    Tensor,
)
from nestor.passes.analysis import expression_variables, is_pointwise
from nestor.passes.contraction import Contraction, contraction_of
from nestor.passes.contraction_tile import shared_window
from nestor.passes.expansions import is_expansion, reads_expansion
from nestor.passes.knobs import Choices
from nestor.passes.line_fusion import is_balanced, line_rows, turned_line_rows
from nestor.passes.statement_facts import few_rows
from nestor.passes.strides import typical

MAX_ROW_TEMP_ELEMS = 16384
"""Largest part of a temp kept per shared row [elements]: 64 KiB of float32, within an L2 cache."""

MAX_SERIAL_WORK = 1 << 14
"""Statement instances that one thread runs in less time than waking another takes."""


@dataclass(frozen=True, slots=True)
class FusedKernel:
    """A kernel and, for each of its statements, its shared indices (equal position: equal row)."""

    kernel: Kernel
    shared: dict[str, tuple[str, ...]]


@dataclass(slots=True)
class Partition:
    """Kernels and externs in running order, and why statements were not fused."""

    parts: list[FusedKernel | Extern] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Group:
    """Statements of one kernel, and the indices that they share."""

    statements: list[Statement]
    shared: dict[str, tuple[str, ...]]
    position: int
    sequential: bool = False
    product: Statement | None = None  # that takes lines of a convolution in this group

    @property
    def names(self) -> set[str]:
        """Of its statements."""
        return {s.name for s in self.statements}

    def add(self, statement: Statement, rows: Sequence[str | None]) -> None:
        """Take a statement whose indices ``rows`` are the group's shared ones; None: one that is
        shared no more."""
        keep = [p for p, r in enumerate(rows) if r is not None]
        self.shared = {n: tuple(s[p] for p in keep) for n, s in self.shared.items()}
        self.shared[statement.name] = tuple(r for r in rows if r is not None)
        self.statements.append(statement)


def partition_program(
    program: Program,
    *,
    l2_bytes: int,
    cores: int = 1,
    aliases: dict[str, str] | None = None,
    choices: Choices | None = None,
) -> Partition:
    """Group ``program``'s statements into kernels.

    Args: l2_bytes: what a group may keep near per thread [bytes]. cores: that rows are for.
        choices: decides what the rules leave open; None: they do.
    """
    return Partitioner(program, l2_bytes, cores, choices or Choices()).run()


class Partitioner:
    """Groups statements into kernels for the cores of a CPU; what may join a group and whether it
    pays is ``join``'s to say."""

    def __init__(self, program: Program, l2_bytes: int, cores: int, choices: Choices):
        self.program = program
        self.l2_bytes = l2_bytes
        self.cores = cores
        self.choices = choices
        self.tensors = {t.name: t for t in program.tensors}
        self.root = {t.name: _root(t, self.tensors) for t in program.tensors}
        self.partition = Partition()
        self.groups: list[Group | Extern] = []
        self.group_of_writer: dict[str, list[int]] = {}
        self.users: dict[str, list[str]] = {}
        self.writers: dict[str, list[str]] = {}
        self.predecessors: dict[int, set[int]] = {}

    def run(self) -> Partition:
        ordered = sorted(self.program.statements, key=lambda s: _positions(s.order))
        for statement in ordered:
            for name in {self.root[n] for n in (*_reads(statement), *_writes(statement))}:
                self.users.setdefault(name, []).append(statement.name)
            for name in {self.root[n] for n in _writes(statement)}:
                self.writers.setdefault(name, []).append(statement.name)
        touched: dict[str, set[int]] = {}
        for statement in ordered:
            g = self._place(statement, touched)
            for name in {*_reads(statement), *_writes(statement)}:
                touched.setdefault(self.root[name], set()).add(g)
            for name in _writes(statement):
                self.group_of_writer.setdefault(self.root[name], []).append(g)
        self._emit()
        return self.partition

    def _place(self, statement: AnyStatement, touched: dict[str, set[int]]) -> int:
        """Index of the group that takes ``statement``; a new one if no group can."""
        before: set[int] = set()
        written = {self.root[n] for n in _writes(statement)}
        for name in {self.root[n] for n in _reads(statement)}:
            before |= set(self.group_of_writer.get(name, ()))
        for name in written:
            before |= touched.get(name, set())
        if isinstance(statement, Statement):
            for g in sorted(before, reverse=True):
                group = self.groups[g]
                if isinstance(group, Extern) or not self._may_follow(g, before):
                    continue
                if self.join(group, statement):
                    self.predecessors[g] |= before - {g}
                    return g
        self.groups.append(_new_group(statement, len(self.groups)))
        g = len(self.groups) - 1
        self.predecessors[g] = before
        return g

    def _may_follow(self, g: int, before: set[int]) -> bool:
        """No other producer of the statement depends on group ``g``."""
        stack, seen = [b for b in before if b != g], set()
        while stack:
            b = stack.pop()
            if b == g:
                return False
            if b not in seen:
                seen.add(b)
                stack += self.predecessors[b]
        return True

    def refuse(self, group: Group, statement: Statement, reason: str) -> bool:
        """Log why a statement does not join a group; always False."""
        last = group.statements[-1].name
        self.partition.refused.append(f"{statement.name} into the kernel of {last}: {reason}")
        return False

    def join(self, group: Group, statement: Statement) -> bool:
        """Add a statement to a group if it may and should run in its kernel."""
        sequence = _sequence_key(statement)
        if sequence is not None or group.sequential:
            first = group.statements[0]
            if sequence is None or sequence != _sequence_key(first):
                return False
            group.statements.append(statement)
            group.shared[statement.name] = ()
            return True
        rows = self.common_rows(group, statement)
        if rows is None:
            return self.refuse(group, statement, "their accesses share no index")
        lines = self._line_rows(group, statement, rows)
        turned = self._turned_rows(group, statement, rows)
        rows = lines or turned or rows
        row_reason = self.row_reason if lines or turned else self._profit
        reason = row_reason(group, statement, rows)
        if reason is not None:
            return self.refuse(group, statement, reason)
        if lines:
            group.product = statement
        group.add(statement, rows)
        return True

    def common_rows(self, group: Group, statement: Statement) -> list[str | None] | None:
        """For each shared position of the group, the statement's matching index, or None."""
        reduced = set(statement.reduction.indices) if statement.reduction else set()
        if statement.scatter is not None or (statement.reduction and statement.reduction.into):
            return None
        width = len(next(iter(group.shared.values())))
        found: list[str | bool | None] = [True] * width
        writers = [(s, w) for s in group.statements for w in s.writes]
        if any(self.root[n] != n for n in _reads(statement) if self.in_group(group, n)):
            return None
        between = ((s, w, x) for x in _loads(statement) for s, w in writers if w.tensor == x.tensor)
        for writer, write, load in between:
            pairs = _match(writer, write.indices, statement, load)
            shared = group.shared[writer.name]
            for p in range(width):
                index = pairs.get(shared[p])
                if index is None or index in reduced:
                    found[p] = None
                elif found[p] is True:
                    found[p] = index
                elif found[p] != index:
                    found[p] = None
        rows = [f if isinstance(f, str) else None for f in found]
        named = [r for r in rows if r is not None]
        if not named and self._serial_work(group, statement) > MAX_SERIAL_WORK:
            return None
        return rows if len(set(named)) == len(named) else None

    def _serial_work(self, group: Group, statement: Statement) -> int:
        """Instances that one thread would run if the statements shared no parallel row."""
        return sum(_volume(s, list(s.domain.names)) for s in (*group.statements, statement))

    def in_group(self, group: Group, tensor: str) -> bool:
        """Whether a statement of the group writes a tensor."""
        root = self.root[tensor]
        return any(self.root[w.tensor] == root for s in group.statements for w in s.writes)

    def _profit(self, group: Group, statement: Statement, rows: list[str | None]) -> str | None:
        """None if joining pays, else the reason why not."""
        if is_expansion(statement, self.tensors):
            return "an expansion starts a kernel, which its readers may join"
        full = all(r is not None for r in rows)
        contraction = contraction_of(statement, self.tensors)
        inside = [c for s in group.statements if (c := contraction_of(s, self.tensors))]
        if statement.reduction is None and full and len(rows) == len(statement.domain.names):
            return None
        if group.product is not None and full and _same_points(group.product, statement):
            return None
        if contraction is not None:
            return self._contraction_profit(group, statement, contraction, rows)
        if inside:
            lost = {p for p, r in enumerate(rows) if r is None}
            if any(self._combines_parts(group, c, statement, lost) for c in inside):
                return "parts of a sum are combined in a kernel of their own"
            if not all(self._may_run_in_rows(c, group, lost) for c in inside):
                return "the contraction's second operand is read again for every row tile"
            if any(c.rows and not self._keeps_row(group, c, rows) for c in inside):
                return "the contraction would lose the rows that reuse its operand"
            if any(_extent_is_symbolic(s, group, p) for s in group.statements for p in lost):
                return "what a row keeps would have no bound"
        return self.row_reason(group, statement, rows)

    def _line_rows(
        self, group: Group, statement: Statement, rows: list[str | None]
    ) -> list[str | None] | None:
        """The rows that stay if ``statement`` is a product that takes lines of a convolution, of
        which nobody else reads the results; None if it is not."""
        second = contraction_of(statement, self.tensors)
        inside = [c for s in group.statements if (c := contraction_of(s, self.tensors))]
        if second is None or len(inside) != 1 or not self._alone_reads(group, statement):
            return None
        first = inside[0]
        lines = line_rows(first, second, group.shared[first.statement.name], rows, self.l2_bytes)
        if not lines:
            return None
        extents = "x".join(str(_extent(statement, n)) for n in statement.domain.names)
        default = "together" if is_balanced(statement, lines, self.cores) else "apart"
        meaning = "a product of a depthwise convolution's lines: in its kernel, or one of its own"
        way = self.choices.word(f"lines {extents}", ("apart", "together"), default, meaning)
        return lines if way == "together" else None

    def _turned_rows(
        self, group: Group, statement: Statement, rows: list[str | None]
    ) -> list[str | None] | None:
        """The rows that stay if ``statement`` stores a product's results, line by line, along other
        memory than they are made; None if it does not."""
        if len(group.statements) != 1 or not self._alone_reads(group, statement):
            return None
        first = contraction_of(group.statements[0], self.tensors)
        if first is None:
            return None
        shared = group.shared[first.statement.name]
        lines = turned_line_rows(first, statement, self.tensors, shared, rows, self.l2_bytes)
        return lines if lines and is_balanced(statement, lines, self.cores) else None

    def _alone_reads(self, group: Group, statement: Statement) -> bool:
        """Whether what ``statement`` takes from the group are temps that nobody else reads."""
        readers = {*group.names, statement.name}
        return all(
            self.tensors[n].role == "temp" and readers.issuperset(self.users[n])
            for n in _reads(statement)
            if self.in_group(group, n)
        )

    def _contraction_profit(
        self,
        group: Group,
        statement: Statement,
        contraction: Contraction,
        rows: list[str | None],
    ) -> str | None:
        inside = [c for s in group.statements if (c := contraction_of(s, self.tensors))]
        if self._takes_copies(group, contraction, rows):
            return self.row_reason(group, statement, rows)
        if not inside and not reads_expansion(statement, group.statements, self.tensors):
            return "a contraction starts a kernel of its own"
        lost = {p for p, r in enumerate(rows) if r is None}
        near = not inside or self._is_near(contraction)
        if not near or any(not self._is_near(c, group, lost) for c in inside):
            return "the contraction's second operand is read again for every row tile"
        if not any(r in contraction.rows for r in rows if r is not None):
            return "no shared row reuses the contraction's operand"
        return self.row_reason(group, statement, rows)

    def _combines_parts(
        self, group: Group, c: Contraction, statement: Statement, lost: set[int]
    ) -> bool:
        """Whether ``statement`` adds up results of ``c`` over an index of all of its operands: then
        they are parts of one sum, cut for the sake of what runs in parallel."""
        if statement.reduction is None or not isinstance(statement.elements[0], Load):
            return False
        places = group.shared[c.statement.name]
        used = [expression_variables(x) for e in c.statement.elements for x in loads(e)]
        return any(all(places[p] in u for u in used) for p in lost)

    def _takes_copies(self, group: Group, c: Contraction, rows: list[str | None]) -> bool:
        """Whether a depthwise convolution reads a copy (with a border) that the group makes: image
        by image the copy stays near, and as no row reuses an operand, none is lost."""
        window = shared_window(c.statement, c)
        if window is None or c.rows or not all(_is_copy(s) for s in group.statements):
            return False
        return not {c.vector, window.row} & {r for r in rows if r is not None}

    def _may_run_in_rows(self, c: Contraction, group: Group, lost: set[int]) -> bool:
        """The second operand stays near, or rows save more traffic than reading it again costs:
        those of a temp that is larger than what it is made of, if all of them stay."""
        if self._is_near(c, group, lost):
            return True
        return not lost and reads_expansion(c.statement, group.statements, self.tensors)

    def _is_near(
        self, c: Contraction, group: Group | None = None, lost: Iterable[int] = ()
    ) -> bool:
        """Whether the operand shared by all rows of a batch instance stays in half the L2 cache.

        Args: group, lost: positions of the group's shared indices that would be shared no more:
            all that the operand holds along them is then read for each row.
        """
        if c.vector_operand_role == "parameter" and not self._in_blocks(c, group, lost):
            return False
        operand_bytes = c.vector_operand_bytes
        if group is not None and c.vector_operand is not None:
            used = expression_variables(c.vector_operand) - {c.vector}
            for p in lost:
                index = group.shared[c.statement.name][p]
                operand_bytes *= _extent(c.statement, index) if index in used else 1
        return operand_bytes * 2 <= self.l2_bytes

    def _in_blocks(self, c: Contraction, group: Group | None, lost: Iterable[int]) -> bool:
        """Whether rows stay shared that take blocks of the vector operand in turns."""
        if group is None or c.vector_operand is None:
            return False
        used = expression_variables(c.vector_operand) - {c.vector}
        shared = group.shared[c.statement.name]
        return any(n in used for p, n in enumerate(shared) if p not in set(lost))

    def _keeps_row(self, group: Group, c: Contraction, rows: list[str | None]) -> bool:
        shared = group.shared[c.statement.name]
        return any(shared[p] in c.rows for p, r in enumerate(rows) if r is not None)

    def row_reason(self, group: Group, statement: Statement, rows: list[str | None]) -> str | None:
        """Refuse where a row's temps would not stay near, or where too few rows are left."""
        keep = {p for p, r in enumerate(rows) if r is not None}
        count = 1
        for p in keep:
            first = group.statements[0]
            count *= _extent(first, group.shared[first.name][p])
        total = max(
            _volume(s, [n for n in s.domain.names if n not in _reduced(s)])
            for s in group.statements
        )
        if (
            count < min(few_rows(self.cores), total)
            and self._serial_work(group, statement) > MAX_SERIAL_WORK
        ):
            return f"only {count} rows would be left to run in parallel"
        for s in group.statements:
            if not _read_by(statement, s):
                continue
            shared = {group.shared[s.name][p] for p in keep}
            inner = [n for n in s.domain.names if n not in _reduced(s) and n not in shared]
            if _volume(s, inner) > MAX_ROW_TEMP_ELEMS:
                return f"a row of '{s.name}' has {_volume(s, inner)} elements"
        return None

    # Output

    def _emit(self) -> None:
        order = self._topological()
        for g in order:
            group = self.groups[g]
            if isinstance(group, Extern):
                self.partition.parts.append(group)
            else:
                kernel = self.make_kernel(group, f"k{len(self.partition.parts)}")
                self.partition.parts.append(FusedKernel(kernel, group.shared))

    def _topological(self) -> list[int]:
        done: list[int] = []
        seen: set[int] = set()

        def last_position(g: int) -> tuple[int, ...]:
            group = self.groups[g]
            last = group if isinstance(group, Extern) else group.statements[-1]
            return _positions(last.order)

        def visit(g: int) -> None:
            stack = [(g, iter(sorted(self.predecessors[g])))]
            seen.add(g)
            while stack:
                node, rest = stack[-1]
                for b in rest:
                    if b not in seen:
                        seen.add(b)
                        stack.append((b, iter(sorted(self.predecessors[b]))))
                        break
                else:
                    done.append(node)
                    stack.pop()

        for g in sorted(range(len(self.groups)), key=last_position):
            if g not in seen:
                visit(g)
        return done

    def make_kernel(self, group: Group, name: str) -> Kernel:
        """The Program of a group: what only it uses is a temp of its own."""
        inside = group.names
        used: dict[str, Tensor] = {}
        read: set[str] = set()
        written: set[str] = set()
        for s in group.statements:
            for n in (*_reads(s), *_writes(s)):
                used.setdefault(n, self.tensors[n])
            read |= set(_reads(s))
            written |= set(_writes(s))
        tensors = []
        for n, t in used.items():
            outside = any(u not in inside for u in self.users.get(self.root[n], ()))
            partly = any(w not in inside for w in self.writers.get(self.root[n], ()))
            role: Role
            if n not in written:
                role = t.role if t.role in ("parameter", "constant") else "input"
            elif t.role == "temp" and not outside and t.alias_of is None and self.root[n] == n:
                role = "temp"
            elif t.role in ("inout", "state") or (n in read and partly):
                role = "inout"
            else:
                role = "output"
            tensors.append(replace(t, role=role, alias_of=self._base_in(n, used)))
        return Program(
            name=name,
            symbols=self.program.symbols,
            tensors=tuple(tensors),
            statements=tuple(group.statements),
        )

    def _base_in(self, name: str, used: dict[str, Tensor]) -> str | None:
        """The tensor of the kernel that ``name`` is an alias of: the first with the same bytes."""
        root = self.root[name]
        base = root if root in used else next(n for n in used if self.root[n] == root)
        return None if base == name else base


def _new_group(statement: AnyStatement, position: int) -> Group | Extern:
    if isinstance(statement, Extern):
        return statement
    reduced = _reduced(statement)
    free = tuple(n for n in statement.domain.names if n not in reduced)
    if statement.scatter is not None or (statement.reduction and statement.reduction.into):
        free = ()
    sequential = _sequence_key(statement) is not None
    return Group([statement], {statement.name: () if sequential else free}, position, sequential)


def _extent_is_symbolic(s: Statement, group: Group, position: int) -> bool:
    """Whether a row that is shared so far has a symbolic extent, and the rest has a constant one:
    what ``s`` writes then stays near as long as the row is shared."""
    shared = group.shared[s.name]
    inner = [n for n in s.domain.names if n not in shared and n not in _reduced(s)]
    row = s.domain.range_of(shared[position])
    rest = [s.domain.range_of(n) for n in inner]
    return not (row.upper - row.lower).is_const and all((r.upper - r.lower).is_const for r in rest)


def _match(
    writer: Statement, written: tuple[object, ...], reader: Statement, load: Load
) -> dict[str, str]:
    """Pairs (index of the writer → index of the reader) that touch the same place of a tensor."""
    pairs: dict[str, str] = {}
    for w, r in zip(written, load.indices):
        if not isinstance(w, Affine) or not isinstance(r, Affine) or w.const != r.const:
            continue
        for atom, c in w.terms:
            if not isinstance(atom, str) or atom not in writer.domain.names:
                continue
            same = [b for b, k in r.terms if k == c and isinstance(b, str)]
            if len(same) == 1 and same[0] in reader.domain.names:
                a_range, b_range = writer.domain.range_of(atom), reader.domain.range_of(same[0])
                if (a_range.lower, a_range.upper) == (b_range.lower, b_range.upper):
                    pairs[atom] = same[0]
    return pairs


def _reads(statement: AnyStatement) -> Iterator[str]:
    if isinstance(statement, Extern):
        yield from statement.inputs
        return
    for element in statement.elements:
        for load in loads(element):
            yield load.tensor
    for write in statement.writes:
        for index in write.indices:
            if not isinstance(index, Affine):
                for load in loads(index):
                    yield load.tensor
    if statement.reduction is not None:
        if statement.reduction.into:
            for write in statement.writes:
                yield write.tensor
        for final in statement.reduction.final:
            for load in loads(final):
                yield load.tensor


def _writes(statement: AnyStatement) -> tuple[str, ...]:
    if isinstance(statement, Extern):
        return statement.outputs
    return tuple(w.tensor for w in statement.writes)


def _is_copy(statement: Statement) -> bool:
    """Whether it moves elements, perhaps into a border's midst."""
    return is_pointwise(statement) and all(isinstance(e, Load) for e in statement.elements)


def _same_points(first: Statement, statement: Statement) -> bool:
    """Whether a pointwise statement has an instance for each result of ``first``."""
    results = _volume(first, [n for n in first.domain.names if n not in _reduced(first)])
    return is_pointwise(statement) and _volume(statement, list(statement.domain.names)) == results


def _read_by(reader: Statement, writer: Statement) -> bool:
    names = {w.tensor for w in writer.writes}
    return any(load.tensor in names for load in _loads(reader))


def _loads(statement: Statement) -> Iterator[Load]:
    """Loads of a statement's elements and of its final map."""
    final = statement.reduction.final if statement.reduction else ()
    return (load for e in (*statement.elements, *final) for load in loads(e))


def _root(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    while tensor.alias_of is not None:
        tensor = tensors[tensor.alias_of]
    return tensor.name


def _positions(order: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(p for p in order if isinstance(p, int))


def _sequence_key(statement: Statement) -> tuple[object, ...] | None:
    return tuple(statement.order[:1]) if len(statement.order) > 1 else None


def _reduced(statement: Statement) -> set[str]:
    return set(statement.reduction.indices) if statement.reduction else set()


def _extent(statement: Statement, name: str) -> int:
    r = statement.domain.range_of(name)
    return typical(r.upper - r.lower)


def _volume(statement: Statement, names: list[str]) -> int:
    volume = 1
    for name in names:
        volume *= _extent(statement, name)
    return volume
