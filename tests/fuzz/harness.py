"""One fuzz case: a Program, several schedules, and what checker, interpreter and LLVM say."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import pytest

from nestor.autotune.space import Space
from nestor.errors import IllegalSchedule, IRError, LegalityUnknown, UserError
from nestor.ir import (
    numeric,
    parse_nest,
    print_nest,
    run_nest,
    run_program,
    verify_nest,
    verify_program,
)
from nestor.ir.expr import Load
from nestor.ir.loopnest import Block, LoopNest
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule, schedule_from_json, schedule_to_json
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.target.cpu import CpuTarget, host_target, parse_target
from tests.fuzz.enclosure_program import EnclosureRun, Memory, find_mismatch
from tests.fuzz.generate_inputs import make_inputs
from tests.fuzz.generate_programs import Case
from tests.fuzz.generate_schedules import random_schedule
from tests.fuzz.program_passes import (
    ALGEBRA,
    find_pass_fault,
    find_pipeline_fault,
    find_wrong_result,
    optimized,
)
from tests.helpers.llvm_native import NativeNest
from tests.legality import oracle
from tests.legality.confirm import confirm

RESULTS = ("output", "inout", "state")
SCHEDULES = 3
"""Random schedules tried a case, beside the default one."""

ORDER_SEEDS = (None, 1, 2)

INDEX_SEEDS = 12
"""Made-up contents of index inputs, tried before a refusal counts as false."""


class Failure(Exception):
    """Something is wrong. ``kind`` is stable under shrinking."""

    def __init__(self, kind: str, text: str):
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule for a kernel, and where it comes from."""

    schedule: Schedule
    source: str


@dataclass(slots=True)
class Reference:
    """What a kernel is given, and what it may return; ``others``: for other symbol values."""

    inputs: dict[str, np.ndarray]
    symbols: dict[str, int]
    memory: dict[str, Memory]
    others: list[Reference] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """What happened, over all cases."""

    schedules: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)
    legal: list[tuple[Case, Candidate, str]] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)

    def summary(self) -> str:
        """A few lines for people."""
        s = self.schedules
        features = ", ".join(f"{n} {k}" for n, k in sorted(self.features.items()))
        cells = ", ".join(f"{k} {n}" for n, k in self.cells.items())
        slowest = max(self.seconds, key=self.seconds.__getitem__, default=None)
        worst = "" if slowest is None else f", case {slowest} {self.seconds[slowest]:.1f} s"
        return (
            f"{len(self.seconds)} cases in {sum(self.seconds.values()):.0f} s{worst}\n"
            f"{s['tried']} schedules: {_share(s['accepted'], s['tried'])} accepted, "
            f"{s['refused']} refused, {s['malformed']} malformed, {s['unknown']} unknown\n"
            f"refusals: {_share(s['witnessed'], s['refused'])} witnesses confirmed by the "
            f"interpreter, {s['too large']} too large to run; "
            f"{_share(s['legal'], s['refused'])} false (legal by enumeration)\n"
            f"{s['default']} default schedules accepted; {s['native']} native runs\n"
            f"cells: {cells}\n"
            f"features: {features}"
        )


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / max(1, whole):.1f} %)"


def targets() -> list[CpuTarget]:
    """AVX2, and AVX-512 where the host has it."""
    host = host_target()
    return [host, parse_target("avx2")] if host.vector_bits == 512 else [host]


# ------------------------------------------------------------------------------------- reference


def make_reference(case: Case) -> Reference:
    """Run the Program in every way that needs no schedule. Raises: ``Failure``."""
    verify_program(case.program)
    reference = _make_reference(case)
    if case.symbols:
        for change in (lambda n: 1, lambda n: n + 3):
            symbols = {name: change(n) for name, n in case.symbols.items()}
            reference.others.append(_make_reference(replace(case, symbols=symbols)))
    return reference


def _make_reference(case: Case) -> Reference:
    inputs = make_inputs(case)
    memory = EnclosureRun(case.program, inputs, case.symbols).run()
    for name, exact in (("vectorised interpreter", False), ("exact interpreter", True)):
        results = run_program(case.program, inputs, case.symbols, exact=exact)
        _compare(name, case.program, memory, results)
    return Reference(inputs, case.symbols, memory)


def _compare(
    who: str, program: Program, memory: Mapping[str, Memory], results: Mapping[str, np.ndarray]
) -> None:
    for t in program.tensors:
        if t.role in RESULTS:
            wrong = find_mismatch(t.name, memory[t.name], results[t.name])
            if wrong is not None:
                raise Failure(who, str(wrong))


def fresh_arrays(nest: LoopNest, reference: Reference) -> dict[str, np.ndarray]:
    """Memory for one run: inputs copied, everything else garbage; aliases are views."""
    arrays: dict[str, np.ndarray] = {}
    later = []
    for t in nest.tensors:
        shape = tuple(int(d.evaluate(reference.symbols)) for d in t.shape)
        if t.alias_of is not None:
            later.append((t.name, t.alias_of, shape))
        elif t.name in reference.inputs:
            data = reference.inputs[t.name]
            arrays[t.name] = np.array(numeric.cast(data, t.dtype, t.dtype)).reshape(shape)
        else:
            arrays[t.name] = numeric.garbage(shape, t.dtype)
    for name, base, shape in later:
        if base in arrays:
            arrays[name] = arrays[base].reshape(shape)
    return arrays


# ------------------------------------------------------------------------------------- schedules


def candidates(case: Case, counts: Counts) -> Iterator[Candidate]:
    """Random schedules of the whole Program."""
    for k in range(SCHEDULES):
        schedule, malformed, kind = random_schedule(case.program, f"{case.seed} {k}")
        counts.schedules["malformed steps"] += malformed
        yield Candidate(schedule, kind)


def default_parts(program: Program) -> list[tuple[FusedKernel, dict[str, str]]]:
    """The kernels that the compiler makes of it, and what their names stand for."""
    parts = partition_program(program, l2_bytes=1 << 20).parts
    return [canonicalize_kernel(p) for p in parts if isinstance(p, FusedKernel)]


def check_candidate(case: Case, reference: Reference, candidate: Candidate, counts: Counts) -> None:
    """Judge one schedule by everybody. Raises: ``Failure``."""
    counts.schedules["tried"] += 1
    kernel = case.program
    try:
        nest = apply_schedule(kernel, candidate.schedule)
    except UserError:
        counts.schedules["malformed"] += 1
        return
    try:
        verify_nest(nest)
    except IRError:
        counts.schedules["malformed"] += 1
        return
    try:
        check_nest(kernel, nest)
    except IllegalSchedule as refusal:
        counts.schedules["refused"] += 1
        counts.schedules[f"refused: {refusal.question}"] += 1
        _check_witness(case, nest, refusal, counts)
        if not is_refusal_confirmed(case, nest, reference, refusal):
            counts.schedules["legal"] += 1
            counts.legal.append((case, candidate, str(refusal)))
        return
    except LegalityUnknown as unknown:
        counts.schedules["unknown"] += 1
        counts.schedules[f"unknown: {str(unknown)[-40:]}"] += 1
        return
    if parse_nest(print_nest(nest)) != nest:
        raise Failure("text", "the nest's text parses back to another nest")
    if schedule_from_json(schedule_to_json(candidate.schedule)) != candidate.schedule:
        raise Failure("text", "the schedule's JSON reads back as another schedule")
    counts.schedules["accepted"] += 1
    counts.schedules[f"accepted: {candidate.source}"] += 1
    counts.features.update(type(s).__name__ for s in candidate.schedule)
    run_everywhere(case, nest, reference, counts)


def run_everywhere(case: Case, nest: LoopNest, reference: Reference, counts: Counts) -> None:
    """The interpreter in several orders, then native code for every target and team size."""
    for seed in ORDER_SEEDS:
        arrays = fresh_arrays(nest, reference)
        run_nest(nest, arrays, reference.symbols, order_seed=seed)
        _compare(f"nest interpreter, order {seed}", case.program, reference.memory, arrays)
    for target in targets():
        native = NativeNest(nest, target, fp_contract=case.seed % 4 != 3)
        for threads in (1, 2):
            _run_native(native, case, reference, f"{target.cpu}, {threads} threads", threads)
            counts.schedules["native"] += 1
        for other in reference.others:
            _run_native(native, case, other, f"{target.cpu}, symbols {other.symbols}", 2)


def _run_native(
    native: NativeNest, case: Case, reference: Reference, who: str, threads: int
) -> None:
    arrays = fresh_arrays(native.nest, reference)
    with numeric.quiet():
        code = native.run(arrays, reference.symbols, threads=threads)
    if code != 0:
        raise Failure(who, "an index is reported out of range")
    _compare(who, case.program, reference.memory, arrays)
    for t in native.nest.tensors:
        if t.name in reference.inputs and t.role not in RESULTS:
            if arrays[t.name].tobytes() != reference.inputs[t.name].tobytes():
                raise Failure(who, f"{t.role} {t.name} was changed")


def _check_witness(case: Case, nest: LoopNest, refusal: IllegalSchedule, counts: Counts) -> None:
    """The instances that the refusal names do what it says (for one choice of the data)."""
    try:
        confirm(case.program, nest, refusal)
    except oracle.TooLarge:
        counts.schedules["too large"] += 1
    except AssertionError as wrong:
        raise Failure("witness", f"{refusal}\nbut: {wrong}") from wrong
    else:
        counts.schedules["witnessed"] += 1


def is_refusal_confirmed(
    case: Case, nest: LoopNest, reference: Reference, refusal: IllegalSchedule
) -> bool:
    """Whether enumeration or a run shows that the nest is wrong."""
    facts: dict[str, Any] = refusal.witness
    symbols = dict(facts.get("a", {}).get("symbols", {})) or dict(reference.symbols)
    kernel = _with_visible_temps(case.program, nest)
    for values in (symbols, reference.symbols):
        if _is_wrong_by_enumeration(kernel, nest, values):
            return True
    if _is_wrong_for_other_indices(case, nest, symbols):
        return True
    for seed in (None, 1, 2, 3, 4):
        arrays = fresh_arrays(nest, reference)
        try:
            run_nest(nest, arrays, reference.symbols, order_seed=seed)
            _compare("", case.program, reference.memory, arrays)
        except (Failure, UserError, KeyError):
            return True
    return False


def _is_wrong_by_enumeration(kernel: Program, nest: LoopNest, symbols: dict[str, int]) -> bool:
    try:
        return oracle.find_violation(kernel, nest, symbols) is not None
    except oracle.TooLarge:
        return False


def _with_visible_temps(kernel: Program, nest: LoopNest) -> Program:
    """Temps that stay in memory count too: a wrong one is wrong even if nothing shows it."""
    kept = {t.name for t in nest.tensors}
    return replace(
        kernel,
        tensors=tuple(
            replace(t, role="output") if t.role == "temp" and t.name in kept else t
            for t in kernel.tensors
        ),
    )


def _is_wrong_for_other_indices(case: Case, nest: LoopNest, symbols: dict[str, int]) -> bool:
    """The checker judges gathers and scatters for all data: here, all indices 0, then any."""
    if not case.indexes or any(distinct for _, distinct in case.indexes.values()):
        return False
    real = oracle.Machine.concrete
    kernel = _with_visible_temps(case.program, nest)
    for seed in range(INDEX_SEEDS):

        def made_up(self: Any, e: Any, env: Any, seed: int = seed) -> int:
            value = real(self, e, env)
            if seed == 0:
                return 0
            if not isinstance(e, Load):
                return value
            return Random(f"{seed} {e.tensor} {self.index(e.indices, env)}").randrange(4)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(oracle.Machine, "concrete", made_up)
            if _is_wrong_by_enumeration(kernel, nest, symbols):
                return True
    return False


def check_compiler(case: Case, reference: Reference, counts: Counts) -> None:
    """What needs no schedule of ours: passes, partition, default schedules. Raises: ``Failure``."""
    for find in (find_pass_fault, find_pipeline_fault):
        fault = find(case.program, reference.inputs, case.symbols, reference.memory)
        if fault is not None:
            raise Failure("passes", fault)
    check_default(case, reference, counts)


def check_default(case: Case, reference: Reference, counts: Counts) -> None:
    """Partition and the rules' schedules, of the Program or of what the passes make of it."""
    program, given, tolerance = case.program, reference, 0.0
    if case.seed % 2:
        program, inputs = optimized(case.program, reference.inputs, case.symbols)
        given, tolerance = replace(reference, inputs=inputs), ALGEBRA
    parts = default_parts(program)
    for target in targets():
        memory = program_arrays(program, given)
        for part, names in parts:
            verify_program(part.kernel)
            nest = apply_schedule(part.kernel, _schedule_of(part, target, case.seed))
            verify_nest(nest)
            counts.schedules["default"] += 1
            try:
                check_nest(part.kernel, nest)
            except (IllegalSchedule, LegalityUnknown) as refusal:
                raise Failure("default schedule", str(refusal)) from refusal
            native = NativeNest(nest, target)
            own = {t.name: memory[names[t.name]] for t in nest.tensors}
            symbols = {s.name: case.symbols[names[s.name]] for s in nest.symbols}
            with numeric.quiet():
                code = native.run(own, symbols, threads=2)
            if code != 0:
                raise Failure("default schedule", "an index is reported out of range")
        wrong = find_wrong_result(case.program, memory, reference.memory, tolerance)
        if wrong is not None:
            raise Failure(f"default schedule, {target.cpu}", str(wrong))


def _schedule_of(part: FusedKernel, target: CpuTarget, seed: int) -> Schedule:
    """The default schedule, or what the same rules make where their decisions are drawn."""
    space = Space(part, target)
    drawn = Random(f"{seed} {target.cpu}")
    if drawn.random() < 0.4:
        return space.default().schedule
    return space.sample(drawn).schedule


def program_arrays(program: Program, reference: Reference) -> dict[str, np.ndarray]:
    """Memory for all tensors of a Program, its temps too."""
    whole = LoopNest(
        name=program.name,
        symbols=program.symbols,
        tensors=program.tensors,
        body=Block(body=()),
    )
    return fresh_arrays(whole, reference)


def check_case(case: Case, counts: Counts) -> None:
    """Everything about one case. Raises: ``Failure``."""
    started = time.monotonic()
    counts.features.update(case.features)
    oracle.forget()
    reference = make_reference(case)
    _count_cells(case, reference, counts)
    for candidate in candidates(case, counts):
        check_candidate(case, reference, candidate, counts)
    check_compiler(case, reference, counts)
    counts.seconds[case.seed] = time.monotonic() - started


def _count_cells(case: Case, reference: Reference, counts: Counts) -> None:
    """How sharp the comparison is: cells with one allowed value, a narrow range, or any."""
    for t in case.program.tensors:
        if t.role in RESULTS:
            memory = reference.memory[t.name]
            cells = memory.cells
            vague = cells.open
            if t.dtype.is_float:
                vague = cells.num & (np.isinf(cells.lo) | np.isinf(cells.hi))
                vague &= cells.lo != cells.hi
            counts.cells["exact"] += int(np.sum(cells.is_point & ~vague))
            counts.cells["vague"] += int(np.sum(vague))
            counts.cells["all"] += cells.size
