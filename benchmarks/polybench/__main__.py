"""``python -m benchmarks.polybench NAME…``: time loop kernels against C compilers, taking turns."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, machine
from benchmarks.polybench import runner, tables, tuned
from benchmarks.polybench.case import SIZES
from benchmarks.polybench.native import C_PEERS, compiler_version, find_compiler
from benchmarks.polybench.peers import PEERS, TUNED, warm_up
from benchmarks.polybench.registry import CASES
from benchmarks.roofline import Machine, measure_machine
from nestor.cli import run_guarded
from nestor.cli_progress import progress_bar
from nestor.errors import UserError
from nestor.tables import print_tables


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.polybench",
        description="Time the kernels of PolyBench/C 4.2.1 against C compilers, taking turns.",
        epilog="example:\n  python -m benchmarks.polybench gemm lu --size MEDIUM --rounds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kernels", nargs="+", metavar="KERNEL", help="a name, or all")
    parser.add_argument("--size", default="LARGE", choices=SIZES)
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32"))
    parser.add_argument(
        "--peers",
        default="clang,gcc,nestor",
        help="of clang, gcc, polly, nestor; ratios: to the first",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=9, help="turns of each peer, at most; slow kernels get fewer"
    )
    parser.add_argument(
        "--may-alias",
        action="store_true",
        help="keep from the C compilers that arrays do not overlap, as PolyBench does by default",
    )
    parser.add_argument(
        "--tune",
        type=float,
        metavar="SECONDS",
        help="tune each kernel for so long, and time it against itself untuned and the first C"
        " peer; kernels that have a result are left out",
    )
    parser.add_argument("--again", action="store_true", help="with --tune: none is left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: benchmarks/results/")
    parser.add_argument("--md", type=Path, metavar="FILE", help="default: benchmarks/results/")
    return parser.parse_args(given)


def _choose(asked: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    unknown = [name for name in asked if name != "all" and name not in known]
    if unknown:
        raise UserError(f"no {what} {unknown[0]!r}; there are: {', '.join(known)}")
    return list(known) if "all" in asked else list(dict.fromkeys(asked))


def _about(names: Sequence[str], peak: Machine) -> dict[str, Any]:
    about = machine()
    for name in names:
        if name != "nestor":
            about[name] = f"{compiler_version(find_compiler(name))} {' '.join(C_PEERS[name].flags)}"
    about["peak"] = f"{peak.flops / 1e9:.0f} Gflop/s"
    about["copy"] = f"{peak.bandwidth / 1e9:.1f} GB/s"
    return about


def _tune(given: argparse.Namespace, kernels: list[str], names: list[str]) -> int:
    """Tune ``kernels``; 1 if a peer failed or is wrong."""
    compiler = next((n for n in names if n != "nestor"), None)
    if compiler is None or not given.tune > 0:
        raise UserError("--tune is a number of seconds, and needs a C compiler among --peers")
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    settings = tuned.Settings(
        seconds=given.tune,
        size=given.size,
        dtype=given.dtype,
        threads=given.threads,
        names=(compiler, "nestor", TUNED),
    )
    label = "polybench_tuned"
    if (given.size, given.dtype) != ("LARGE", "float64"):
        label += f"-{given.size.lower()}-{given.dtype}"
    markdown = given.md or RESULTS / f"{label}.md"
    data = given.json or markdown.with_suffix(".json")
    with tempfile.TemporaryDirectory(prefix="nestor-polybench-") as folder:
        command = find_compiler(compiler)
        peak = measure_machine(command, Path(folder), threads=given.threads, dtype=given.dtype)
    warm_up(given.threads)
    with progress_bar() as tell:
        results = tuned.run_all(
            kernels,
            settings,
            peak,
            _about((compiler,), peak),
            (markdown, data),
            rounds=given.rounds,
            again=given.again,
            tell=tell,
        )
    print_tables(tuned.result_table(results, settings))
    failed = tuned.failures(results)
    if failed:
        print("\n" + "\n".join(failed))
    print(f"\nwrote {markdown} and {data}")
    return 1 if failed else 0


def run(given: argparse.Namespace) -> int:
    """Run what was asked for; 1 if a peer's answer is wrong or Nestor fails."""
    kernels = _choose(given.kernels, list(CASES), "kernel")
    names = _choose(given.peers.split(","), PEERS, "peer")
    if given.rounds < 1 or given.threads < 1:
        raise UserError("--rounds and --threads are at least 1")
    if given.tune is not None:
        return _tune(given, kernels, names)
    # Polly's parallel loops ask OpenMP for its default.
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    compilers = {n: find_compiler(n) for n in names if n != "nestor"}
    label = "polybench" if len(kernels) == len(CASES) else "polybench-part"
    if (given.size, given.dtype) != ("LARGE", "float64"):
        label += f"-{given.size.lower()}-{given.dtype}"
    markdown = given.md or RESULTS / f"{label}.md"
    data = given.json or markdown.with_suffix(".json")
    command = next(iter(compilers.values()), None) or find_compiler("gcc")
    with tempfile.TemporaryDirectory(prefix="nestor-polybench-") as folder:
        peak = measure_machine(command, Path(folder), threads=given.threads, dtype=given.dtype)
    about = _about(names, peak)
    about["arrays"] = "may overlap" if given.may_alias else "restrict"
    if "nestor" in names:
        warm_up(given.threads)
    results: list[runner.Measured] = []
    with progress_bar() as tell:
        for i, name in enumerate(kernels):
            results.append(
                runner.measure(
                    CASES[name],
                    given.size,
                    given.dtype,
                    names,
                    peak,
                    threads=given.threads,
                    rounds=given.rounds,
                    restrict=not given.may_alias,
                    tell=lambda what, done, i=i: tell(what, (i + done) / len(kernels)),
                )
            )
            # After each kernel, so that an interrupted run keeps what it has.
            tables.write_results(results, names, given.threads, about, markdown, data)
    print_tables(tables.speed_table(results, names, given.threads))
    failed = tables.failures(results)
    if failed:
        print("\n" + "\n".join(failed))
    print(f"\nwrote {markdown} and {data}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: run(_arguments(None))))
