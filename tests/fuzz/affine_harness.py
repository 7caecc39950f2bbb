"""One affine case: what checker, enumeration, interpreters and native code say of a schedule."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from nestor.errors import IllegalSchedule, LegalityUnknown, UserError
from nestor.ir import numeric, parse_nest, print_nest, run_nest, run_program, verify_nest
from nestor.ir.loopnest import LoopNest
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import Promote, schedule_from_json, schedule_to_json
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.target.cpu import CpuTarget, host_target
from tests.fuzz.enclosure_program import EnclosureRun, find_mismatch
from tests.fuzz.generate_inputs import READ_ROLES, random_array
from tests.fuzz.generate_programs import Case
from tests.fuzz.harness import Candidate, Failure, Reference, fresh_arrays
from tests.helpers.llvm_native import NativeNest
from tests.legality import oracle
from tests.legality.confirm import confirm

MAX_SECONDS = 10.0
"""Building and checking a nest may take so long, of the processor's time."""

MAX_COMPUTES = 6_000
"""Of one enumeration; a witness that needs more counts as too large. (What an element went through
is kept as a whole, so time and memory grow with the square of this.)"""

NATIVE_EVERY = 5
"""Of the accepted cases, every fifth also runs natively."""

RESULTS = ("output", "inout", "state")
ORDER_SEEDS = (None, 1)


@dataclass(slots=True)
class AffineCounts:
    """What happened, over all cases."""

    verdicts: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    legal: list[tuple[int, str]] = field(default_factory=list)
    unknown: list[tuple[int, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    seconds: float = 0.0

    def summary(self) -> str:
        """A few lines for people."""
        v = self.verdicts
        judged = v["accepted"] + v["refused"] + v["unknown"]
        kinds = {k[9:]: n for k, n in v.items() if k.startswith("accepted ")}
        questions = {k[8:]: n for k, n in v.items() if k.startswith("refused ")}
        return "\n".join(
            (
                f"affine programs × steps on trees: {v['cases']} cases in {self.seconds:.0f} s",
                f"  {v['does not apply']} do not apply; of {judged} judged: "
                f"{_share(v['accepted'], v['cases'])} of the cases accepted, "
                f"{v['refused']} refused, {v['unknown']} unknown",
                f"  accepted by kind: {kinds}; run natively: {v['native']}",
                f"  refused by question: {questions}",
                f"  witnesses confirmed: {v['witnessed']}, too large to run: {v['too large']}; "
                f"reversed dependences that change no result: {v['harmless']}; "
                f"false refusals: {_share(v['legal'], v['refused'])}",
                f"  steps of accepted schedules: {dict(self.steps.most_common())}",
                f"  building and checking took at most {self.slowest[0]:.1f} s "
                f"(case {self.slowest[1]})",
                f"  features: {', '.join(f'{k} {n}' for k, n in sorted(self.features.items()))}",
            )
        )


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / max(1, whole):.1f} %)"


def check_affine_case(
    case: Case, candidate: Candidate, counts: AffineCounts, *, native: bool
) -> None:
    """Judge one schedule of one Program by everybody. Raises: ``Failure``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "LIMIT", MAX_COMPUTES)
        _check_case(case, candidate, counts, native=native)


def _check_case(case: Case, candidate: Candidate, counts: AffineCounts, *, native: bool) -> None:
    oracle.forget()
    counts.verdicts["cases"] += 1
    kernel = case.program
    started = time.process_time()
    try:
        nest = apply_schedule(kernel, candidate.schedule)
        verify_nest(nest)
        check_nest(kernel, nest)
    except IllegalSchedule as refusal:
        _note_time(case, started, counts)
        if refusal.question not in refusable(candidate):
            raise Failure(
                "builder", f"a tree runs every instance once, but: {refusal}"
            ) from refusal
        counts.verdicts["refused"] += 1
        counts.verdicts[f"refused {refusal.question}"] += 1
        _check_refusal(case, nest, refusal, counts)
        return
    except LegalityUnknown as unknown:
        _note_time(case, started, counts)
        counts.verdicts["unknown"] += 1
        counts.unknown.append((case.seed, str(unknown)))
        return
    except UserError as misfit:
        _note_time(case, started, counts)
        if type(misfit) is not UserError:
            raise Failure("malformed", f"{type(misfit).__name__}: {misfit}") from misfit
        counts.verdicts["does not apply"] += 1
        return
    _note_time(case, started, counts)
    counts.verdicts["accepted"] += 1
    counts.verdicts[f"accepted {candidate.source}"] += 1
    counts.steps.update({type(s).__name__ for s in candidate.schedule})
    if parse_nest(print_nest(nest)) != nest:
        raise Failure("text", "the nest's text parses back to another nest")
    if schedule_from_json(schedule_to_json(candidate.schedule)) != candidate.schedule:
        raise Failure("text", "the schedule's JSON reads back as another schedule")
    _check_by_enumeration(case, nest)
    run_everywhere(case, nest, counts, native=native)


def refusable(candidate: Candidate) -> tuple[str, ...]:
    """What a schedule may do wrong: the order of instances, and what is kept in promoted buffers.

    Any other refusal shows a mistake in building the nest.
    """
    if any(isinstance(step, Promote) for step in candidate.schedule):
        return "dependence", "buffer"
    return ("dependence",)


def _note_time(case: Case, started: float, counts: AffineCounts) -> None:
    seconds = time.process_time() - started
    counts.slowest = max(counts.slowest, (seconds, case.seed))
    if seconds > MAX_SECONDS:
        raise Failure("too slow", f"building and checking took {seconds:.1f} s")


def other_symbols(case: Case) -> list[dict[str, int]]:
    """The case's own sizes, and ones."""
    found = [case.symbols]
    ones = dict.fromkeys(case.symbols, 1)
    return found if ones == case.symbols else [*found, ones]


# --- refusals ----------------------------------------------------------------------------------


def _check_refusal(
    case: Case, nest: LoopNest, refusal: IllegalSchedule, counts: AffineCounts
) -> None:
    """The witness holds, and enumeration finds the nest wrong too."""
    try:
        confirm(case.program, nest, refusal)
    except oracle.TooLarge:
        counts.verdicts["too large"] += 1
        return
    except AssertionError as wrong:
        raise Failure("witness", f"{refusal}\nbut: {wrong}") from wrong
    counts.verdicts["witnessed"] += 1
    at: dict[str, int] = dict(refusal.witness.get("a", {}).get("symbols", {}))  # type: ignore[attr-defined]
    for symbols in (at, *other_symbols(case)):
        try:
            if oracle.find_violation(case.program, nest, symbols) is not None:
                return
        except oracle.TooLarge:
            counts.verdicts["too large"] += 1
            return
    if refusal.witness.get("kind") in ("order", "stale"):
        # The two do touch one element in the wrong order; nothing comes of it, for what one of
        # them writes is overwritten unread, or is the same value. Dependences are kept even so.
        counts.verdicts["harmless"] += 1
        return
    counts.verdicts["legal"] += 1
    counts.legal.append((case.seed, str(refusal)))


# --- accepted ----------------------------------------------------------------------------------


def _check_by_enumeration(case: Case, nest: LoopNest) -> None:
    for symbols in other_symbols(case):
        wrong = oracle.find_violation(case.program, nest, symbols)
        if wrong is not None:
            raise Failure("enumeration", f"accepted, but with {symbols}: {wrong}")


def make_inputs(case: Case, symbols: dict[str, int]) -> dict[str, np.ndarray]:
    """Ordinary numbers of modest size."""
    from random import Random

    rng = Random(f"inputs {case.seed}")
    out: dict[str, np.ndarray] = {}
    for t in case.program.tensors:
        if t.role in READ_ROLES:
            shape = tuple(int(d.evaluate(symbols)) for d in t.shape)
            values = random_array(shape, t.dtype, "normal", rng)
            out[t.name] = np.clip(values, -1.5, 1.5) if t.dtype.is_float else values
    return out


def is_exact(program: Program) -> bool:
    """Whether no order of evaluation is left open: results are the same bits."""
    return not any(
        isinstance(s, Statement) and s.reduction is not None and s.elements[0].dtype.is_float
        for s in program.statements
    )


def run_everywhere(case: Case, nest: LoopNest, counts: AffineCounts, *, native: bool) -> None:
    """The nest's interpreter in two orders; then native code with one and two threads."""
    compiled = NativeNest(nest, target(), fp_contract=False) if native else None
    for symbols in other_symbols(case):
        inputs = make_inputs(case, symbols)
        wanted = run_program(case.program, inputs, symbols, exact=True)
        bounds = None
        if not is_exact(case.program):
            bounds = EnclosureRun(case.program, inputs, symbols).run()
        reference = Reference(inputs, symbols, bounds or {})
        for seed in ORDER_SEEDS:
            arrays = fresh_arrays(nest, reference)
            run_nest(nest, arrays, symbols, order_seed=seed)
            compare(f"nest interpreter, order {seed}", case, reference, wanted, arrays)
        if compiled is None:
            continue
        for threads in (1, 2):
            arrays = fresh_arrays(nest, reference)
            with numeric.quiet():
                code = compiled.run(arrays, symbols, threads=threads)
            if code != 0:
                raise Failure("native", "an index is reported out of range")
            compare(f"native, {threads} threads, {symbols}", case, reference, wanted, arrays)
    counts.verdicts["native"] += compiled is not None


def target() -> CpuTarget:
    """The host."""
    return host_target()


def compare(
    who: str,
    case: Case,
    reference: Reference,
    wanted: dict[str, np.ndarray],
    got: dict[str, np.ndarray],
) -> None:
    """Equal bits where no order is open, else within proven bounds; inputs unchanged."""
    for t in case.program.tensors:
        if t.name not in got:
            continue
        if t.role == "input" and got[t.name].tobytes() != reference.inputs[t.name].tobytes():
            raise Failure(who, f"input {t.name} was changed")
        if t.role not in RESULTS:
            continue
        if reference.memory:
            wrong = find_mismatch(t.name, reference.memory[t.name], got[t.name])
            if wrong is not None:
                raise Failure(who, str(wrong))
        elif not np.array_equal(wanted[t.name], got[t.name], equal_nan=t.dtype.is_float):
            at = np.argwhere(wanted[t.name] != got[t.name])[:3].tolist()
            raise Failure(who, f"{t.name} differs at {at}")
