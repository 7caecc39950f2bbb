"""Native code of a loop kernel: restrict its Program to the sizes, compile, load, call."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from dataclasses import dataclass, replace

from nestor.config import Config
from nestor.errors import IndexOutOfRange, InputError, InternalError, UserError
from nestor.ir.affine import Affine, Interval
from nestor.ir.program import Program, Statement, Tensor
from nestor.ir.schedule import Schedule
from nestor.kernel_binding import BoundCall
from nestor.kernel_job import KernelJob, KernelObject
from nestor.kernel_store import compile_jobs, job_key
from nestor.runtime.arena import ALIGNMENT, Arena
from nestor.runtime.elf import load_object
from nestor.runtime.frames import KERNEL_TYPE
from nestor.runtime.memory import round_up
from nestor.runtime.tensors import NUMPY
from nestor.runtime.threads import Services, thread_count
from nestor.target.cpu import CpuTarget, parse_target

SMALL_INSTANCES = 500_000
"""Kernels of fewer statement instances run on one thread: they take some tens of microseconds, and
threads that start in every time step would take longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeOptions:
    """How to compile; see ``loop_kernel.Kernel``."""

    reassociate: bool
    contract: bool
    threads: int | None


def choose(program: Program, target: CpuTarget, *, reassociate: bool) -> tuple[Schedule, ...]:
    """Schedules of a kernel without tuning: the best, and what to try where it is refused."""
    from nestor.passes.affine_schedule import affine_space, fallback_points
    from nestor.passes.affine_space import schedule_of
    from nestor.proposing import propose

    space = affine_space(
        program,
        target,
        reassociate=reassociate,
        propose=lambda asked, limit: propose(asked, limit_seconds=limit),
    )
    return tuple(schedule_of(space, point) for point in fallback_points(space))


class NativeKernel:
    """A kernel compiled for all sizes within a Program's symbol ranges.

    Attributes:
        program: what was compiled (origins left out: they are no part of a kernel's identity).
        compiled: object code and what making it cost. from_cache: it was found there.
    """

    def __init__(self, program: Program, options: NativeOptions, config: Config) -> None:
        self.target = parse_target(config.target)
        self.options, self.origins = options, program
        from nestor.passes.affine_pipeline import prepare_affine

        self.program = _without_origins(prepare_affine(program, reassociate=options.reassociate))
        chosen = choose(self.program, self.target, reassociate=options.reassociate)
        job = KernelJob(
            kernel=self.program,
            schedule=chosen[0],
            fallbacks=chosen[1:],
            target=self.target,
            function_name="kernel",
            contract=options.contract,
        )
        key = job_key(job)
        objects, cached = compile_jobs({key: job}, config)
        self.compiled: KernelObject = objects[key]
        self.from_cache = key in cached
        self._loaded = load_object(self.compiled.code, label=program.name)
        self._function = KERNEL_TYPE(self._loaded.address(self.compiled.function_name))
        by_name = {t.name: t for t in self.program.tensors}
        self._tensors = [by_name[n] for n in self._argument_names(job)]
        self._temps = [t for t in self._tensors if t.role == "temp"]
        self._threads = options.threads if options.threads is not None else config.threads
        self._small: dict[tuple[int, ...], bool] = {}
        self._frames: deque[_Frame] = deque()

    def _argument_names(self, job: KernelJob) -> tuple[str, ...]:
        if self.compiled.tensors:
            return self.compiled.tensors
        from nestor.passes.nest import apply_schedule

        return tuple(t.name for t in apply_schedule(job.kernel, self.compiled.schedule).tensors)

    def __call__(self, bound: BoundCall) -> None:
        """Run on bound arguments whose symbols are within the Program's ranges.

        Raises: ``IndexOutOfRange`` if an index that is data was outside its array.
        """
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = _Frame(len(self._tensors), len(self.program.symbols))
        try:
            status = self._run(bound, frame)
        finally:
            self._frames.append(frame)
        if status == 1:
            raise self._out_of_range()
        if status:
            raise InternalError(f"native code returned the unknown status {status}")

    def _run(self, bound: BoundCall, frame: _Frame) -> int:
        frame.services.update(1 if self._is_small(bound) else thread_count(self._threads))
        offsets, total = temp_layout(self._temps, bound.symbols)
        base = frame.arena.reserve(total) if total else frame.arena.reserve(ALIGNMENT)
        for position, tensor in enumerate(self._tensors):
            if tensor.role == "temp":
                pointer = base + offsets[tensor.name]
            elif tensor.name in bound.arrays:
                array = bound.arrays[tensor.name]
                pointer = array.library.pointer(array.dense) or base
            else:
                pointer = NUMPY.pointer(bound.scalars[tensor.name])
            frame.arguments[position] = pointer
        for position, symbol in enumerate(self.program.symbols):
            frame.symbols[position] = bound.symbols[symbol.name]
        return int(
            self._function(
                ctypes.addressof(frame.arguments),
                ctypes.addressof(frame.symbols),
                frame.services.address,
            )
        )

    def _is_small(self, bound: BoundCall) -> bool:
        """Whether starting threads would take longer than they save."""
        sizes = tuple(bound.symbols.values())
        found = self._small.get(sizes)
        if found is None:
            if len(self._small) >= 1024:
                self._small.clear()
            found = count_instances(self.program, bound.symbols) < SMALL_INSTANCES
            self._small[sizes] = found
        return found

    def _out_of_range(self) -> IndexOutOfRange:
        lines = dict.fromkeys(
            f"  {s.origin}"
            for s in self.origins.statements
            if isinstance(s, Statement) and s.origin is not None and reads_data_index(s)
        )
        return IndexOutOfRange(
            f"kernel '{self.program.name}': an index read from an array lies outside the array "
            "that it selects from; one of these lines:\n" + "\n".join(lines)
        )


class _Frame:
    """What one call in flight needs: pointers, symbols, services, temporaries."""

    __slots__ = ("arena", "arguments", "services", "symbols")

    def __init__(self, tensors: int, symbols: int) -> None:
        self.arguments = (ctypes.c_uint64 * max(1, tensors))()
        self.symbols = (ctypes.c_int64 * max(1, symbols))()
        self.services = Services()
        self.arena = Arena()


def count_instances(program: Program, symbols: dict[str, int]) -> int:
    """How many statement instances run at most: those of the boxes around the domains."""
    total = 0
    for statement in program.statements:
        if not isinstance(statement, Statement):
            continue
        ranges: dict[str, Interval] = {n: (v, v) for n, v in symbols.items()}
        volume = 1
        for r in statement.domain.ranges:
            low, high = r.lower.bounds(ranges)[0] or 0, (r.upper - 1).bounds(ranges)[1] or 0
            ranges[r.name] = (low, max(low, high))
            volume *= max(0, high - low + 1)
        total += volume
    return total


def temp_layout(temps: list[Tensor], symbols: dict[str, int]) -> tuple[dict[str, int], int]:
    """Offset of each temporary, and the bytes of all."""
    offsets: dict[str, int] = {}
    total = 0
    for tensor in temps:
        offsets[tensor.name] = total
        count = 1
        for size in tensor.shape:
            count *= int(size.evaluate(symbols))
        total += round_up(count * tensor.dtype.bytes, ALIGNMENT)
    return offsets, total


def reads_data_index(statement: Statement) -> bool:
    """Whether some access of a statement has an index that is data."""
    from nestor.ir.expr import Load, distinct_nodes

    exprs = [*statement.elements]
    for w in statement.writes:
        if any(not isinstance(i, Affine) for i in w.indices):
            return True
    return any(
        isinstance(n, Load) and any(not isinstance(i, Affine) for i in n.indices)
        for e in exprs
        for n in distinct_nodes(e)
    )


def _without_origins(program: Program) -> Program:
    return replace(program, statements=tuple(replace(s, origin=None) for s in program.statements))


class Variants:
    """The compiled forms of one kernel: by the piece of its size conditions, and for sizes that
    are all at least 1 apart from those with a 0."""

    def __init__(self, program: Program, options: NativeOptions) -> None:
        self.program, self.options = program, options
        self._native: dict[tuple[int, int], NativeKernel] = {}
        self._accepted: dict[tuple[int, ...], tuple[int, int]] = {}
        self._conditions: Conditions | None = None
        self._lock = threading.Lock()

    @property
    def compiled(self) -> tuple[NativeKernel, ...]:
        """The forms compiled so far."""
        return tuple(self._native.values())

    def for_sizes(self, symbols: dict[str, int]) -> NativeKernel:
        """The form for these sizes, compiled at first use.

        Raises: ``InputError`` for sizes with which an access would leave its array; ``UserError``
            if some access always does.
        """
        sizes = tuple(symbols.values())
        key = self._accepted.get(sizes)
        if key is None:
            piece = self._conditions_of().check(symbols)
            key = (piece, min((1, *sizes)))
            if len(self._accepted) < 1024:
                self._accepted[sizes] = key
        return self._compiled(key)

    def default(self) -> NativeKernel:
        """The form for sizes of at least 1, or that form that is for some sizes at all."""
        conditions = self._conditions_of()
        keys = [(piece, lower) for lower in (1, 0) for piece in range(len(conditions.found.pieces))]
        fitting = (k for k in keys if _has_sizes(conditions.restrict(*k)))
        return self._compiled(next(fitting, keys[0]))

    def _conditions_of(self) -> Conditions:
        if self._conditions is None:
            with self._lock:
                self._conditions = self._conditions or Conditions(self.program)
        return self._conditions

    def _compiled(self, key: tuple[int, int]) -> NativeKernel:
        found = self._native.get(key)
        if found is not None:
            return found
        conditions = self._conditions_of()
        with self._lock:
            if key not in self._native:
                restricted = conditions.restrict(key[0], key[1])
                self._native[key] = NativeKernel(restricted, self.options, Config.load())
            return self._native[key]


def _has_sizes(program: Program) -> bool:
    """Whether no symbol's range is empty."""
    return all(s.upper is None or s.lower <= s.upper for s in program.symbols)


class Conditions:
    """The size conditions of a Program, and the errors for sizes that do not meet them.

    Raises: ``UserError`` if no sizes meet them, or an access is outside whenever it runs.
    """

    def __init__(self, program: Program) -> None:
        from nestor.passes.polyhedral.size_conditions import find_size_conditions

        self.program = program
        self.found = find_size_conditions(program)
        self._refuse_certain()

    def check(self, symbols: dict[str, int]) -> int:
        """Position of a piece that holds. Raises: ``InputError`` naming the access."""
        for position, piece in enumerate(self.found.pieces):
            if all(c.evaluate(symbols) >= 0 for c in piece):
                return position
        raise self._refusal(symbols)

    def restrict(self, piece: int, lower: int) -> Program:
        """The Program for one piece and sizes of at least ``lower``."""
        from nestor.passes.polyhedral.size_conditions import restrict_program

        needy = frozenset(o.statement for o in self.found.outside)
        return restrict_program(self.program, self.found.pieces[piece], needy, lower)

    def _refuse_certain(self) -> None:
        for o in self.found.outside:
            if not o.certain:
                continue
            at = ", ".join(f"{n}={v}" for n, v in o.witness.items())
            value = o.index.evaluate(o.witness) if o.statement else 0
            what = f"index {value} of '{o.tensor}'" if o.statement else f"'{o.tensor}'"
            raise UserError(
                f"kernel '{self.program.name}': {what} is always outside its array: dimension "
                f"{o.dim} has size {o.extent} = {o.extent.evaluate(o.witness)}\n"
                f"  at {at}\n  from {o.origin}\n  fix: change the loop's bounds, or the index"
            )
        if not self.found.pieces:
            where = dict.fromkeys(f"'{o.tensor}' in {o.origin}" for o in self.found.outside)
            raise UserError(
                f"kernel '{self.program.name}': whatever the sizes are, some access is outside its "
                f"array: {'; '.join(where)}\n  fix: change the loops' bounds, or the indices"
            )

    def _refusal(self, symbols: dict[str, int]) -> Exception:
        sizes = ", ".join(f"{n}={v}" for n, v in symbols.items())
        head = f"kernel '{self.program.name}' with {sizes}: "
        for o in self.found.outside:
            holding = [c for c in o.when or () if all(a.evaluate(symbols) >= 0 for a in c)]
            if not holding:
                continue
            if not o.statement:
                size = o.extent.evaluate(symbols)
                return InputError(f"{head}the local array '{o.tensor}' has size {size}")
            return InputError(
                f"{head}an access leaves its array: '{o.tensor}' at index {o.index} of dimension "
                f"{o.dim}, whose size is {o.extent} = {o.extent.evaluate(symbols)}\n"
                f"  from {o.origin}\n  fix: pass sizes that fit, or change the loop's bounds"
            )
        return InputError(
            f"{head}accesses would leave their arrays, or the conditions for that have more than "
            f"{len(self.found.pieces)} cases, of which the kernel is compiled for some only"
        )
