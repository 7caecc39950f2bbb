"""Compile a random loop kernel as a call does, and compare with Python and the nest as written."""

from __future__ import annotations

import importlib.util
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import nestor
from nestor import kernel_native
from nestor.autotune.space import RuleSpace
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.isl_stages import IslStages
from nestor.passes import affine_choices
from nestor.passes.affine_facts import AffineFacts, BandFacts
from nestor.passes.affine_schedule import affine_space
from nestor.passes.affine_space import schedule_of
from nestor.proposing import propose
from nestor.target.cpu import CpuTarget
from tests.fuzz.generate_loop_kernels import MARGIN, Made, make_nests
from tests.helpers.python_kernels import copies, run_plain

LENGTHS = (1, 2, 3, 7, 8, 9, 16, 17, 24, 25, 33, 65, 130, 300, 530)
PLAIN_INSTANCES = 3_000
NATIVE_INSTANCES = 3_000_000
"""Most iterations of one loop nest in Python, and in native code."""

SMALL_TILES = {"REDUCED_TILE": 16, "WAVE_TILE": 16, "PANEL_TILE": 32, "TIME_TILE": 4}
"""Tile sizes of the heuristic, so small that short loops cross them."""

TARGETS = ("native", "native", "x86-64-v3")
FORGETFUL = "forgotten dependences"
KINDS = ("the default", "the default", "small tiles", "a random point", FORGETFUL)
"""Where the schedule comes from. The last kind proposes what the checker has to refuse."""

DTYPES = {"f64": np.float64, "f32": np.float32, "i32": np.int32}


@dataclass
class LoopCounts:
    """What happened: equal results, why schedules were refused, the steps that ran."""

    equal: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def summary(self) -> str:
        """One line."""
        refused = ", ".join(f"{n} {reason}" for reason, n in self.refused.most_common(6))
        equal = ", ".join(f"{n} at {what}" for what, n in self.equal.most_common())
        others = "".join(f", {n} {what}" for what, n in self.others.most_common())
        steps = ", ".join(f"{n} {what}" for what, n in self.steps.most_common())
        return (
            f"equal: {equal}{others}; with steps: {steps}; refused schedules: {refused}; "
            f"slowest compile {self.slowest:.1f} s"
        )


class WrongResult(AssertionError):
    """Compiled code disagrees."""


def load(made: Made, folder: Path, seed: int) -> nestor.Kernel:
    """The module's kernel. Raises: what its decoration raises."""
    path = folder / f"nests_{seed}.py"
    path.write_text(made.text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel: nestor.Kernel = module.made
    return kernel


def arguments(
    made: Made, sizes: dict[str, int], steps: int, rng: np.random.Generator, *, wild: bool
) -> tuple[Any, ...]:
    """Arguments of these sizes. wild: with infinities, NaN and zeros of both signs."""
    given: list[Any] = [steps] if made.has_time else []
    for name, (kind, _) in made.arrays.items():
        dims = made.shape(name, {**sizes, "T": steps})
        if kind == "i32":
            values = rng.integers(-50, 50, dims)
        else:
            values = rng.standard_normal(dims).round(3)
            if wild:
                at = rng.random(dims)
                values[at < 0.02] = -0.0
                values[at < 0.01] = np.inf
                values[at < 0.005] = np.nan
        given.append(values.astype(DTYPES[kind]))
    if made.has_index:
        given.append(rng.integers(0, sizes["N"] + 2 * MARGIN, (sizes["N"] + 2 * MARGIN,)))
    return tuple(given)


def random_sizes(pick: random.Random, made: Made, limit: int) -> tuple[dict[str, int], int]:
    """Sizes and time steps of not too much work."""
    while True:
        sizes = {n: pick.choice(LENGTHS) for n in ("N", "M", "K")}
        steps = pick.choice((1, 2, 3, 5, 9)) if made.has_time else 1
        if steps * made.work(sizes) <= limit:
            return sizes, steps


@contextmanager
def as_written() -> Iterator[None]:
    """Kernels compiled inside are not rearranged."""
    with patch.object(kernel_native, "choose", lambda *a, **k: ((),)):
        yield


def _without_dependences(facts: AffineFacts, pick: random.Random) -> AffineFacts:
    """As if some were not there: what is chosen then is often illegal."""

    def forget(band: BandFacts) -> BandFacts:
        return replace(band, vectors=tuple(v for v in band.vectors if pick.random() < 0.4))

    proposals = (replace(p, bands=tuple(map(forget, p.bands))) for p in facts.proposals)
    return replace(facts, proposals=tuple(proposals))


@contextmanager
def heuristic(pick: random.Random, isa: str) -> Iterator[str]:
    """Kernels compiled inside use the heuristic, at its default or at a random point."""
    kind = pick.choice(KINDS)

    def asked(program: Program, limit: float) -> AffineFacts:
        facts = propose(program, limit_seconds=limit)
        return facts if kind != FORGETFUL else _without_dependences(facts, pick)

    def random_point(
        program: Program, target: CpuTarget, stages: IslStages, *, reassociate: bool
    ) -> tuple[Schedule, ...]:
        space = affine_space(program, target, reassociate=reassociate, propose=asked)
        if kind == FORGETFUL:
            return (schedule_of(space, {}),)
        return (RuleSpace(program, space.schedule).sample(pick).schedule,)

    with patch.dict("os.environ", {"NESTOR_TARGET": isa}):
        if kind == "the default":
            yield kind
            return
        with patch.multiple(affine_choices, **SMALL_TILES):
            if kind == "small tiles":
                yield kind
                return
            with patch.object(kernel_native, "choose", random_point):
                yield kind


def run_case(seed: int, folder: Path, counts: LoopCounts) -> None:
    """One kernel, at several sizes and numbers of threads.

    Raises: ``WrongResult``, or what should not be raised.
    """
    pick = random.Random(seed ^ 0x5EED)
    reassociate = pick.random() < 0.5
    made = make_nests(seed, reassociate=reassociate)
    try:
        kernel = load(made, folder, seed)
    except nestor.errors.UserError as error:
        counts.others[f"not a kernel: {str(error).splitlines()[0][:60]}"] += 1
        return
    plain = nestor.kernel(contract=False)(kernel.function)
    rng = np.random.default_rng(seed)
    cases = [(*random_sizes(pick, made, PLAIN_INSTANCES), True) for _ in range(2)]
    cases += [(*random_sizes(pick, made, NATIVE_INSTANCES), False) for _ in range(4)]
    if pick.random() < 0.2:
        sizes, steps, _ = cases[0]
        cases.append(({**sizes, pick.choice("NMK"): 0}, steps, True))
    with heuristic(pick, pick.choice(TARGETS)) as kind:
        for sizes, steps, in_python in cases:
            wild = not reassociate and pick.random() < 0.3
            args = arguments(made, sizes, steps, rng, wild=wild)
            want = copies(args)
            if in_python:
                run_plain(kernel, *want)
            else:
                with as_written():
                    plain(*want)
            tolerance = None
            if reassociate:
                tolerance = sensitivity(plain, args, rng)
                if tolerance is None:
                    continue
            compare(kernel, args, want, tolerance, f"{kind}, {sizes}, T={steps}", counts)
    counts.equal[kind] += 1
    for form in kernel._variants.compiled:
        counts.steps.update({type(step).__name__ for step in form.compiled.schedule})
        for line in (form.compiled.refused or "").split("\n"):
            if line and ":" in line and line.split(":")[0].isidentifier():
                counts.refused[line.split(":")[0]] += 1


def sensitivity(
    plain: nestor.Kernel, args: tuple[Any, ...], rng: np.random.Generator
) -> list[np.ndarray] | None:
    """How far results may be off where sums are reordered: what small changes of inputs do.

    Returns: None where that is too much to tell right from wrong.
    """
    types = {a.dtype for a in args if isinstance(a, np.ndarray)}
    step = 1e-4 if np.dtype(np.float32) in types else 1e-11
    found: list[np.ndarray] = []
    exact, moved = copies(args), copies(args)
    for a in moved:
        if isinstance(a, np.ndarray) and a.dtype.kind == "f":
            a *= (1.0 + step * rng.choice([-1.0, 1.0], a.shape)).astype(a.dtype)
    with as_written():
        plain(*exact)
        plain(*moved)
    for a, b in zip(exact, moved):
        if isinstance(a, np.ndarray) and a.dtype.kind == "f":
            with np.errstate(all="ignore"):
                apart = float(np.max(np.abs(a - b), initial=0.0))
                scale = float(np.max(np.abs(a), initial=0.0))
            if not np.isfinite(apart) or apart > 0.01 * max(scale, 1.0):
                return None
            found.append(np.asarray(20.0 * apart + step * scale))
    return found


def compare(
    kernel: nestor.Kernel,
    args: tuple[Any, ...],
    want: tuple[Any, ...],
    tolerance: list[np.ndarray] | None,
    what: str,
    counts: LoopCounts,
) -> None:
    """Native code on one and two threads gives what is wanted."""
    start = time.monotonic()
    kernel.bind(*args)
    kernel._variants.for_sizes(kernel.bind(*args).symbols)
    counts.slowest = max(counts.slowest, time.monotonic() - start)
    for threads in (1, 2):
        for form in kernel._variants.compiled:
            form._threads = threads
        got = copies(args)
        kernel(*got)
        floats = iter(tolerance or ())
        for position, (a, b) in enumerate(zip(want, got)):
            if not isinstance(a, np.ndarray):
                continue
            bound = next(floats) if tolerance is not None and a.dtype.kind == "f" else None
            with np.errstate(all="ignore"):
                same = (a == b) | ((a != a) & (b != b))
                if bound is not None:
                    same |= np.abs(a - b) <= bound
            if not same.all():
                at = tuple(int(i[0]) for i in np.nonzero(~same))
                raise WrongResult(
                    f"{what}, {threads} threads: argument {position} at {at} of "
                    f"{int((~same).sum())}: {b[at]!r} instead of {a[at]!r}\n"
                    + "\n".join(repr(f.compiled.schedule) for f in kernel._variants.compiled)
                )
