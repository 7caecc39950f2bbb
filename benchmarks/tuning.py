"""What tuning gains: operators by trials, strategies by the clock, whole models.

* ``python -m benchmarks.tuning operators``: each operator without a trial, after 64 trials in an
  empty database, and with the best schedules that any run has on record.
* ``python -m benchmarks.tuning strategies``: the same wall-clock budget for each strategy (and,
  with ``--tvm PYTHON``, for TVM's MetaSchedule in an environment of its own).
* ``python -m benchmarks.tuning models``: models tuned against untuned, and what a second process
  with the same records takes.

All versions of one case run in turns in one process. Results are kept case by case, so a run that
is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.alone import alone
from benchmarks.ops import registry
from nestor.autotune.choosing import tune_kernels
from nestor.autotune.options import TuneOptions
from nestor.autotune.records import Records
from nestor.autotune.tuner import Tuning
from nestor.building import BuiltModel, build_model
from nestor.config import Config
from nestor.tables import Table, render_tables

RESULTS = Path(__file__).parent / "results"
TRIALS = 64
SIX = (
    "gemm_1024",
    "linear_128x768x3072",
    "conv3x3_128_28",
    "conv1x1_256_64_56",
    "depthwise3x3_96_112",
    "softmax",
)
SUITE = (
    "resnet50",
    "mobilenetv2",
    "mobilenetv3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_base",
    "bert_base",
    "bert_base_512",
    "gpt2",
    "gpt2_decode",
    "llama_300m_decode",
    "whisper_encoder",
    "minilm",
    "t5_encoder",
)
STRATEGIES = ("bayesian", "evolution", "random")
_WITHOUT_MODEL = ("evolution", "random")
_SAMPLE_S = 5e-3
_PAUSE_S = 0.03
"""Before each sample, so that threads of the one before have stopped waiting for work [s]."""

_WARM_UP_S = 0.02
"""Calls before those that are timed: code and data come back into the caches, threads wake up, and
the system takes them apart where it has put two on one core [s]."""

_ROUNDS = 41

_COPIES = 5
"""Of a model, among which its rounds are divided."""

Call = Callable[[], Any]

Sampler = Callable[[float], float]
"""The time of a call [s], taken over about so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to compile: its name, and its module with inputs, which are loaded once: where an
    array lies in memory is worth up to a fifth of a kernel's time, and shall not tell."""

    name: str
    load: Callable[[], tuple[Any, tuple[Any, ...]]]


def sampler(call: Call) -> Sampler:
    """Samples of calls in this process."""

    def sample(seconds: float) -> float:
        time.sleep(_PAUSE_S)
        clock = time.perf_counter()
        while time.perf_counter() - clock < _WARM_UP_S:
            call()
        count, clock = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - clock < seconds:
            call()
            count += 1
        return (time.perf_counter() - clock) / count

    return sample


def interleaved(samplers: Mapping[str, Sampler], rounds: int = _ROUNDS) -> dict[str, list[float]]:
    """Times of a call [s], all in turns and each turn in another order."""
    for sample in samplers.values():
        sample(_SAMPLE_S)
    found: dict[str, list[float]] = {name: [] for name in samplers}
    order, draw = list(samplers), random.Random(0)
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            found[name].append(samplers[name](_SAMPLE_S))
    return found


def speed_up(times: Mapping[str, list[float]], name: str, over: str) -> dict[str, float]:
    """How many times as fast ``name`` is as ``over``: median and quartiles of paired turns."""
    ratios = [b / a for a, b in zip(times[name], times[over])]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"low": low, "median": middle, "high": high}


def built(
    case: Case, config: Config, options: TuneOptions | None = None
) -> tuple[BuiltModel, Sampler, Tuning | None]:
    """A case compiled as a user would, after a search if ``options`` ask for one."""
    module, inputs = case.load()
    tune = None
    if options is not None:
        tune = lambda kernels: tune_kernels(kernels, config, options)  # noqa: E731
    made = build_model(module, inputs, {}, config, name=case.name, tune=tune)
    return made, sampler(lambda: made.executable(*inputs)), made.tuning


def settings(folder: Path, database: str | None = None, **others: Any) -> Config:
    """Objects and records in ``folder``, or records in ``database``."""
    url = database or f"sqlite:///{folder / 'records.db'}"
    return Config.load(cache_dir=folder, cache=url, **others)


def run_operator(case: Case, database: str, seconds: float) -> dict[str, Any]:
    """Zero trials, 64 trials, and the best on record after a search of ``seconds`` more [s]."""
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as fresh:
        few = settings(Path(fresh))
        _, after_few, tuning = built(case, few, TuneOptions(trials=TRIALS))
        best = settings(Path(empty), database)
        with Records.open(best) as records:
            records.merge(str(few.cache))
        for seed, strategy in enumerate(STRATEGIES):
            if seconds > 0:
                part = TuneOptions(seconds=seconds / len(STRATEGIES), strategy=strategy, seed=seed)
                built(case, best, part)
        _, recorded, _ = built(case, best)
        _, default, _ = built(case, settings(Path(empty)))
        times = interleaved({"default": default, "few": after_few, "best": recorded})
    assert tuning is not None
    return {
        "default_s": statistics.median(times["default"]),
        "best_over_default": speed_up(times, "best", "default"),
        "few_over_default": speed_up(times, "few", "default"),
        "trials": tuning.trials,
    }


def run_strategies(case: Case, seconds: float, tvm: str | None = None) -> dict[str, Any]:
    """The same budget for each strategy, each with records of its own; then all in turns.

    Args: tvm: interpreter of an environment with TVM, which then takes part.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        samplers: dict[str, Sampler] = {}
        trials: dict[str, int] = {}
        for name in STRATEGIES:
            model = Path("none") if name in _WITHOUT_MODEL else None
            config = settings(Path(folder, name), cost_model=model)
            config.cache_dir.mkdir()
            _, samplers[name], tuning = built(
                case, config, TuneOptions(seconds=seconds, strategy=name)
            )
            trials[name] = tuning.trials if tuning else 0
        _, samplers["default"], _ = built(case, settings(Path(folder)))
        found: dict[str, Any] = {}
        if tvm is not None:
            found["tvm"], sample = stack.enter_context(tvm_peer(tvm, case.name, seconds))
            if sample is not None:
                samplers["tvm"], trials["tvm"] = sample, found["tvm"]["trials"]
        times = interleaved(samplers)
    own = STRATEGIES[0]
    return {
        **found,
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "trials": trials,
        "over": {name: speed_up(times, own, name) for name in times if name != own},
    }


@contextlib.contextmanager
def tvm_peer(
    python: str, operator: str, seconds: float
) -> Iterator[tuple[dict[str, Any], Sampler | None]]:
    """TVM's MetaSchedule on an operator, in a process of its own (``tvm_tuner.py``).

    Gives: its version and trials, or under ``failed`` why it has no schedule; and samples of its
    calls, None if it has failed. Between them the process stands still: its threads ask for work
    for long after a call, on the cores that others need, whose calls then take five times as long.
    """
    script = Path(__file__).with_name("tvm_tuner.py")
    threads = str(Config.load().thread_count())
    command = [python, str(script), operator, "--seconds", str(seconds), "--threads", threads]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def sample(for_seconds: float) -> float:
            os.killpg(process.pid, signal.SIGCONT)
            asked.write(f"{for_seconds}\n")
            asked.flush()
            found = float(answers.readline())
            os.killpg(process.pid, signal.SIGSTOP)
            return found

        watch = threading.Timer(3 * seconds + 60, kill)
        watch.start()
        try:
            line = answers.readline()
            watch.cancel()
            if line:
                yield json.loads(line), sample
            else:
                status = process.wait()
                errors.seek(0)
                lines = errors.read().strip().splitlines() or ["it said nothing"]
                yield {"failed": f"ended with {status}: {lines[-1][:300]}"}, None
        finally:
            watch.cancel()
            kill()
            process.wait()


def run_model(
    case: Case, seconds: float, database: str, searched: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A model tuned for ``seconds`` against untuned; and a second process with its records.

    Where a copy of a model lies in memory is worth some per cent of its time: there are several of
    both, made from the records.
    Args: searched: a result whose search counts; None: search now.
    """
    found = dict(searched) if searched is not None else {}
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as folder:
        config = settings(Path(folder), database)
        if searched is None:
            _, _, tuning = built(case, config, TuneOptions(seconds=seconds))
            assert tuning is not None
            found = {
                "trials": tuning.trials,
                "kept_default": tuning.kept_default,
                "reason": tuning.reason,
            }
        times: dict[str, list[float]] = {"tuned": [], "default": []}
        for _ in range(_COPIES):
            copies = {
                "tuned": built(case, config)[1],
                "default": built(case, settings(Path(plain)))[1],
            }
            for name, own in interleaved(copies, _ROUNDS // _COPIES).items():
                times[name] += own
            copies.clear()
        again = _second_process(case.name, config)
    return {
        **found,
        "default_s": statistics.median(times["default"]),
        "tuned_over_default": speed_up(times, "tuned", "default"),
        "second_process": again,
    }


def _second_process(name: str, config: Config) -> dict[str, float]:
    """What a fresh process takes with the same records and objects [s]."""
    command = [sys.executable, "-m", "benchmarks.tuning", "again", name]
    command += ["--folder", str(config.cache_dir), "--cache", str(config.cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def again(name: str, folder: Path, database: str) -> dict[str, float]:
    """Compile a model from records and objects: seconds in all but the export, and of a call."""
    case = model_case(name)
    module, inputs = case.load()
    config = settings(folder, database)
    clock = time.perf_counter()
    made = build_model(module, inputs, {}, config, name=name)
    seconds = time.perf_counter() - clock
    report = made.report()
    call = interleaved({"again": sampler(lambda: made.executable(*inputs))})["again"]
    return {
        "seconds_without_export": seconds - report.compile_seconds["export"],
        "compiled": sum(k.compile_seconds is not None for k in report.kernels),
        "call_s": statistics.median(call),
    }


def model_case(name: str) -> Case:
    """A model of the speed suite at batch 1."""

    @functools.cache
    def load() -> tuple[Any, tuple[Any, ...]]:
        module, inputs = models.build(name)
        return module.eval(), tuple(inputs(0, 1))

    return Case(name=name, load=load)


def operator_case(name: str) -> Case:
    """An operator of the collection."""
    return Case(name=name, load=functools.cache(lambda: registry.load(name, 0)))


# --------------------------------------------------------------------------------- results


def mean(values: Sequence[float]) -> float:
    """Geometric mean; 1 of none."""
    return math.exp(statistics.fmean(math.log(v) for v in values)) if values else 1.0


def ratio_text(r: Mapping[str, float]) -> str:
    """``1.23× (1.20–1.25)``."""
    return f"{r['median']:.3f}× ({r['low']:.3f}–{r['high']:.3f})"


def reached(result: Mapping[str, Any]) -> tuple[float, float]:
    """Speed without a trial and after a few, over the fastest of default, few and best on record:
    all by the medians of paired turns, since times drift."""
    few = result["few_over_default"]["median"]
    fastest = max(1.0, few, result["best_over_default"]["median"])
    return 1 / fastest, few / fastest


def operator_table(found: Mapping[str, Any]) -> Table:
    """What share of the best on record is reached."""
    shares = {n: reached(r) for n, r in found.items()}
    rows = [
        (n, f"{1e6 * r['default_s']:.1f}", f"{shares[n][0]:.1%}", f"{shares[n][1]:.1%}",
         ratio_text(r["best_over_default"]))
        for n, r in found.items()
    ]  # fmt: skip
    zero = mean([share for share, _ in shares.values()])
    few = mean([share for _, share in shares.values()])
    caption = f"Geometric means: without a trial {zero:.1%}, after {TRIALS} trials {few:.1%}."
    columns = ("operator", ">default [µs]", ">zero trials", f">{TRIALS} trials", ">best on record")
    return Table(title="", columns=columns, rows=tuple(rows), caption=caption)


def strategy_table(found: Mapping[str, Any]) -> Table:
    """The default strategy against the others."""
    others = (*STRATEGIES[1:], "default", "tvm")
    rows = [
        (n, f"{1e6 * r['seconds'][STRATEGIES[0]]:.1f}",
         *(ratio_text(r["over"][o]) if o in r["over"] else "–" for o in others),
         "/".join(str(t) for t in r["trials"].values()))
        for n, r in found.items()
    ]  # fmt: skip
    columns = ("operator", ">tuned [µs]", *(f">over {o}" for o in others), ">trials")
    return Table(title="", columns=columns, rows=tuple(rows))


def model_table(found: Mapping[str, Any]) -> Table:
    """Tuned against untuned, and the second process."""
    rows = [
        (n, f"{1e3 * r['default_s']:.2f}", ratio_text(r["tuned_over_default"]), str(r["trials"]),
         f"{r['second_process']['seconds_without_export']:.2f}",
         str(r["second_process"]["compiled"]))
        for n, r in found.items()
    ]  # fmt: skip
    whole = mean([r["tuned_over_default"]["median"] for r in found.values()])
    columns = (
        "model", ">untuned [ms]", ">tuned over untuned", ">trials", ">second process [s]",
        ">kernels it compiled",
    )  # fmt: skip
    return Table(title="", columns=columns, rows=tuple(rows), caption=f"Geometric mean {whole:.3f}")


TABLES = {"operators": operator_table, "strategies": strategy_table, "models": model_table}


def keep(kind: str, name: str, result: dict[str, Any]) -> None:
    """Add a case's result to its file, and draw the table anew."""
    path = RESULTS / f"tuning_{kind}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = result
    path.write_text(json.dumps(known, indent=1) + "\n")
    text = render_tables([TABLES[kind](known)], width=120)
    path.with_suffix(".md").write_text(f"# Tuning: {kind}\n\n```\n{text}\n```\n")


def known(kind: str) -> dict[str, Any]:
    """Results so far."""
    path = RESULTS / f"tuning_{kind}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def run_case(
    kind: str,
    name: str,
    database: str,
    seconds: float | None,
    tvm: str | None,
    searched: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The result of one case. Args: searched: an earlier one whose search counts."""
    if kind == "operators":
        return run_operator(operator_case(name), database, 60.0 if seconds is None else seconds)
    if kind == "strategies":
        return run_strategies(operator_case(name), seconds or 120.0, tvm)
    return run_model(model_case(name), seconds or 600.0, database, searched)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__)
    parser.add_argument("kind", choices=(*TABLES, "again"))
    parser.add_argument("names", nargs="*", help="cases; default: all that have no result yet")
    parser.add_argument("--cache", help="database of the best on record: sqlite:///PATH")
    parser.add_argument("--seconds", type=float, help="of a search [s]")
    parser.add_argument(
        "--no-search", action="store_true", help="models: measure again what was searched before"
    )
    parser.add_argument("--tvm", metavar="PYTHON", help="an interpreter with apache-tvm: a peer")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.kind == "again":
        print(json.dumps(again(given.names[0], given.folder, given.cache)))
        return 0
    database = given.cache or f"sqlite:///{Path(tempfile.gettempdir(), 'nestor-best.db')}"
    done = known(given.kind)
    everything = {"operators": registry.OPS, "strategies": SIX, "models": SUITE}[given.kind]
    if unknown := [n for n in given.names if n not in everything]:
        parser.error(f"no case {unknown[0]!r}; there are: {', '.join(everything)}")
    for name in given.names or [n for n in everything if n not in done]:
        begin = time.perf_counter()
        with alone():
            searched = done.get(name) if given.no_search else None
            result = run_case(given.kind, name, database, given.seconds, given.tvm, searched)
        keep(given.kind, name, result)
        print(f"{name} ({time.perf_counter() - begin:.0f} s): {json.dumps(result)}", flush=True)
    print(render_tables([TABLES[given.kind](known(given.kind))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
