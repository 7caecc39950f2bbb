"""Native code of a loop kernel: restrict its Program to the sizes, compile, load, call."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from nestor.config import Config
from nestor.errors import IndexOutOfRange, InputError, InternalError, LegalityUnknown, UserError
from nestor.ir.affine import Affine, Interval
from nestor.ir.hashing import canonicalize
from nestor.ir.program import Program, Statement, Tensor
from nestor.ir.schedule import Schedule
from nestor.isl_stages import ISL_SECONDS, PLAIN_SECONDS, IslStages
from nestor.kernel_binding import BoundCall
from nestor.kernel_job import KernelJob, KernelObject
from nestor.kernel_store import compile_jobs, job_key
from nestor.passes.affine_facts import AffineFacts
from nestor.runtime.arena import ALIGNMENT, Arena
from nestor.runtime.elf import load_object
from nestor.runtime.frames import KERNEL_TYPE
from nestor.runtime.memory import round_up
from nestor.runtime.tensors import NUMPY
from nestor.runtime.threads import Services, thread_count
from nestor.target.cpu import CpuTarget, parse_target

if TYPE_CHECKING:
    from nestor.autotune.loop_records import Recalled

SMALL_INSTANCES = 500_000
"""Kernels of fewer statement instances run on one thread: they take some tens of microseconds, and
threads that start in every time step would take longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeOptions:
    """How to compile; see ``loop_kernel.Kernel``."""

    reassociate: bool
    contract: bool
    threads: int | None

    def thread_count(self, config: Config) -> int:
        """How many threads a call uses that is not small."""
        return thread_count(self.threads if self.threads is not None else config.threads)


def choose(
    program: Program, target: CpuTarget, stages: IslStages, *, reassociate: bool
) -> tuple[Schedule, ...]:
    """Schedules of a kernel without tuning: the best, and what to try where it is refused."""
    from nestor.passes.affine_schedule import affine_space, fallback_points
    from nestor.passes.affine_space import schedule_of
    from nestor.proposing import propose

    def ask(asked: Program, limit_seconds: float) -> AffineFacts:
        clock = time.monotonic()
        limit = min(limit_seconds, stages.left - PLAIN_SECONDS)
        found = propose(asked, limit_seconds=max(0.0, limit))
        stages.spend(min(limit_seconds, time.monotonic() - clock))  # less the helper's start
        return found

    space = affine_space(program, target, reassociate=reassociate, propose=ask)
    return tuple(schedule_of(space, point) for point in fallback_points(space))


class Prepared:
    """A Program as schedules are chosen for it.

    Attributes:
        program: origins left out, for they are no part of a kernel's identity.
        origins: the same with them, before it was prepared.
        given_up: what was, on the way; empty if nothing was.
        seconds: of isl's, that are left for a schedule [s].
    """

    def __init__(self, program: Program, options: NativeOptions, stages: IslStages) -> None:
        self.origins, self.given_up = program, ""
        try:
            prepared = stages.prepare(program, reassociate=options.reassociate)
        except LegalityUnknown as error:
            prepared, self.given_up = program, str(error)
        self.program, self.seconds = _without_origins(prepared), stages.left


class NativeKernel:
    """A kernel compiled for all sizes within a Program's symbol ranges.

    Args: tuned: the schedule to use, of the canonical form of the program; None: choose one.
    Attributes:
        program: what was compiled.
        compiled: object code and what making it cost. from_cache: it was found there.
        refused: what was given up on the way, or refused; empty if nothing was.
        isl_seconds: what isl took, less than ``ISL_SECONDS``.
    """

    def __init__(
        self,
        prepared: Prepared,
        options: NativeOptions,
        config: Config,
        tuned: Schedule | None = None,
    ) -> None:
        self.target = parse_target(config.target)
        self.options, self.origins = options, prepared.origins
        self.program, self.tuned = prepared.program, tuned
        stages, given_up = IslStages(prepared.seconds), prepared.given_up
        by_name = {t.name: t for t in self.program.tensors}
        kernel = self.program
        if tuned is None:
            chosen = choose(self.program, self.target, stages, reassociate=options.reassociate)
        else:
            chosen = (tuned,)
            kernel, names = canonicalize(self.program)
            by_name = {names[n]: t for n, t in by_name.items()}
        job = KernelJob(
            kernel=kernel,
            schedule=chosen[0],
            fallbacks=chosen[1:],
            target=self.target,
            function_name="kernel",
            contract=options.contract,
        )
        key = job_key(job)
        objects, cached = compile_jobs({key: job}, config, proofs=stages)
        self.compiled: KernelObject = objects[key]
        self.isl_seconds = ISL_SECONDS - stages.left
        self.refused = "\n".join(filter(None, (given_up, self.compiled.refused)))
        self.from_cache = key in cached
        self._loaded = load_object(self.compiled.code, label=self.program.name)
        self._function = KERNEL_TYPE(self._loaded.address(self.compiled.function_name))
        self._tensors = [by_name[n] for n in self.compiled.tensors]
        self._temps = [t for t in self._tensors if t.role == "temp"]
        self._threads = options.threads if options.threads is not None else config.threads
        self._small: dict[tuple[int, ...], bool] = {}
        self._frames: deque[_Frame] = deque()

    def __call__(self, bound: BoundCall) -> None:
        """Run on bound arguments whose symbols are within the Program's ranges.

        Raises: ``IndexOutOfRange`` if an index that is data was outside its array.
        """
        frame = self._frame()
        try:
            status = self._run(bound, frame)
        finally:
            self._frames.append(frame)
        if status:
            raise self._error(status)

    def run_planned(self, plan: Plan, addresses: list[int], numbers: bytes) -> None:
        """Run on arrays at ``addresses``, in the order of ``plan``.

        Args: numbers: the scalars of the plan in eight bytes each.
        Raises: ``IndexOutOfRange`` as a call does.
        """
        frame = self._frame()
        try:
            if frame.plan is not plan:
                self._prepare(frame, plan)
            if frame.addresses != addresses:
                for k, position in frame.places:
                    frame.arguments[position] = addresses[k]
                frame.addresses = addresses
            if numbers:
                ctypes.memmove(frame.numbers_address, numbers, len(numbers))
            frame.services.update(1 if frame.is_small else thread_count(self._threads))
            status = self._function(
                frame.arguments_address, frame.symbols_address, frame.services.address
            )
        finally:
            self._frames.append(frame)
        if status:
            raise self._error(status)

    def _frame(self) -> _Frame:
        try:
            return self._frames.pop()
        except IndexError:
            return _Frame(len(self._tensors), len(self.program.symbols))

    def _error(self, status: int) -> Exception:
        if status == 1:
            return self._out_of_range()
        return InternalError(f"native code returned the unknown status {status}")

    def _prepare(self, frame: _Frame, plan: Plan) -> None:
        """Everything in the frame but the addresses of arrays and the numbers."""
        frame.plan, frame.addresses = None, []
        frame.is_small = self._is_small(plan.symbols)
        self._place_temporaries(frame, plan.symbols)
        positions = {t.name: k for k, t in enumerate(self._tensors)}
        frame.places = tuple((k, positions[n]) for k, n in enumerate(plan.arrays) if n in positions)
        frame.make_numbers(len(plan.scalars))
        for k, name in enumerate(plan.scalars):
            if name in positions:
                frame.arguments[positions[name]] = frame.numbers_address + 8 * k
        frame.plan = plan

    def _place_temporaries(self, frame: _Frame, symbols: dict[str, int]) -> int:
        """Symbols and temporaries of a frame; an address for what has no elements."""
        offsets, total = temp_layout(self._temps, symbols)
        base = frame.arena.reserve(max(total, ALIGNMENT))
        for position, tensor in enumerate(self._tensors):
            if tensor.role == "temp":
                frame.arguments[position] = base + offsets[tensor.name]
        for position, symbol in enumerate(self.program.symbols):
            frame.symbols[position] = symbols[symbol.name]
        return base

    def _run(self, bound: BoundCall, frame: _Frame) -> int:
        frame.services.update(1 if self._is_small(bound.symbols) else thread_count(self._threads))
        frame.plan = None
        base = self._place_temporaries(frame, bound.symbols)
        for position, tensor in enumerate(self._tensors):
            if tensor.name in bound.arrays:
                array = bound.arrays[tensor.name]
                frame.arguments[position] = array.library.pointer(array.dense) or base
            elif tensor.role != "temp":
                frame.arguments[position] = NUMPY.pointer(bound.scalars[tensor.name])
        return int(
            self._function(frame.arguments_address, frame.symbols_address, frame.services.address)
        )

    def _is_small(self, symbols: dict[str, int]) -> bool:
        """Whether starting threads would take longer than they save. (What was tuned for its sizes
        has them where they do not.)"""
        if self.tuned is not None:
            return False
        sizes = tuple(symbols.values())
        found = self._small.get(sizes)
        if found is None:
            if len(self._small) >= 1024:
                self._small.clear()
            found = is_small(self.program, symbols)
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


class Plan(Protocol):
    """What a frame keeps from call to call: names of arrays and scalars in order, and symbols."""

    arrays: tuple[str, ...]
    scalars: tuple[str, ...]
    symbols: dict[str, int]


class _Frame:
    """What one call in flight needs: pointers, symbols, services, temporaries.

    Attributes:
        plan: whose symbols, temporaries and scalars it holds. places: which of the plan's arrays is
            which argument. addresses: of the arrays there. is_small: it runs on one thread.
    """

    __slots__ = (
        "_numbers",
        "addresses",
        "arena",
        "arguments",
        "arguments_address",
        "is_small",
        "numbers_address",
        "places",
        "plan",
        "services",
        "symbols",
        "symbols_address",
    )

    def __init__(self, tensors: int, symbols: int) -> None:
        self.arguments = (ctypes.c_uint64 * max(1, tensors))()
        self.symbols = (ctypes.c_int64 * max(1, symbols))()
        self.arguments_address = ctypes.addressof(self.arguments)
        self.symbols_address = ctypes.addressof(self.symbols)
        self.services = Services()
        self.arena = Arena()
        self.plan: Plan | None = None
        self.places: tuple[tuple[int, int], ...] = ()
        self.addresses: list[int] = []
        self.is_small = False
        self.make_numbers(0)

    def make_numbers(self, count: int) -> None:
        """Room for ``count`` scalars of eight bytes."""
        self._numbers = (ctypes.c_uint64 * max(1, count))()
        self.numbers_address = ctypes.addressof(self._numbers)


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


def is_small(program: Program, symbols: dict[str, int]) -> bool:
    """Whether a kernel untuned runs on one thread at these sizes."""
    return count_instances(program, symbols) < SMALL_INSTANCES


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
        self._tuned: dict[tuple[tuple[int, int], Schedule], NativeKernel] = {}
        self._prepared: dict[tuple[int, int], tuple[Prepared, Recalled]] = {}
        self._accepted: dict[tuple[int, ...], NativeKernel] = {}
        self._confirmed: dict[tuple[int, ...], Schedule] = {}
        self._conditions: Conditions | None = None
        self._lock = threading.RLock()

    @property
    def compiled(self) -> tuple[NativeKernel, ...]:
        """The forms compiled so far."""
        return (*self._native.values(), *self._tuned.values())

    def for_sizes(self, symbols: dict[str, int]) -> NativeKernel:
        """The form for these sizes, compiled at first use: with the schedule that was confirmed for
        them, if one was.

        Raises: ``InputError`` for sizes with which an access would leave its array; ``UserError``
            if some access always does.
        """
        sizes = tuple(symbols.values())
        found = self._accepted.get(sizes)
        if found is None:
            key = self._key(symbols)
            found = self._with_schedule(key, symbols) or self._compiled(key)
            if len(self._accepted) < 1024:
                self._accepted[sizes] = found
        return found

    def untuned(self, symbols: dict[str, int]) -> NativeKernel:
        """The form for these sizes without tuning. Raises: as ``for_sizes``."""
        return self._compiled(self._key(symbols))

    def use(self, symbols: dict[str, int], schedule: Schedule) -> None:
        """From now on run with ``schedule``, of the canonical form, at these sizes."""
        with self._lock:
            self._confirmed[tuple(symbols.values())] = schedule
            self._accepted.pop(tuple(symbols.values()), None)

    def _key(self, symbols: dict[str, int]) -> tuple[int, int]:
        return (self._conditions_of().check(symbols), min((1, *symbols.values())))

    def _with_schedule(self, key: tuple[int, int], symbols: dict[str, int]) -> NativeKernel | None:
        """The form with what tuning confirmed for these sizes; None if that is nothing, or what the
        checker refuses."""
        with self._lock:
            prepared, recalled = self._prepare(key)
            schedule = self._confirmed.get(tuple(symbols.values())) or recalled.schedule(symbols)
            if schedule is None:
                return None
            found = self._tuned.get((key, schedule))
            if found is None:
                found = NativeKernel(prepared, self.options, Config.load(), schedule)
                if found.compiled.schedule != schedule:
                    return None
                self._tuned[key, schedule] = found
            return found

    def _prepare(self, key: tuple[int, int]) -> tuple[Prepared, Recalled]:
        from nestor.autotune.loop_records import Recalled

        if key not in self._prepared:
            conditions, config = self._conditions_of(), Config.load()
            stages = IslStages(ISL_SECONDS - conditions.seconds)
            prepared = Prepared(conditions.restrict(*key), self.options, stages)
            target, threads = parse_target(config.target), self.options.thread_count(config)
            recalled = Recalled(prepared.program, target, threads, config)
            self._prepared[key] = (prepared, recalled)
        return self._prepared[key]

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
        with self._lock:
            if key not in self._native:
                prepared, _ = self._prepare(key)
                self._native[key] = NativeKernel(prepared, self.options, Config.load())
            return self._native[key]


def _has_sizes(program: Program) -> bool:
    """Whether no symbol's range is empty."""
    return all(s.upper is None or s.lower <= s.upper for s in program.symbols)


class Conditions:
    """The size conditions of a Program, and the errors for sizes that do not meet them.

    Attributes: seconds: that isl took to find them.
    Raises: ``UserError`` if no sizes meet them, or an access is outside whenever it runs;
        ``LegalityUnknown`` if isl cannot tell in time.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        stages = IslStages()
        self.found = stages.sizes(program)
        self.seconds = ISL_SECONDS - stages.left
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
