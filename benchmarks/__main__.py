"""``python -m benchmarks MODEL…``: time models against their peers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, model_tables, peers
from benchmarks.roofline import Machine, peak_meter
from nestor.benchmarking.peers import check_peer_names
from nestor.benchmarking.turns import Timing
from nestor.cli import run_guarded
from nestor.cli_progress import progress_bar
from nestor.errors import UserError
from nestor.tables import print_tables


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time models of benchmarks/models against their peers, taking turns.",
        epilog="example:\n  python -m benchmarks resnet50 gpt2 --peers eager,ort,nestor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a name, or all")
    parser.add_argument(
        "--peers",
        default="eager,compile,nestor",
        help="of eager, compile, ort, ov, nestor; ratios are against the first",
    )
    parser.add_argument("--batch", default="1", help="batch sizes, one after the other: 1 or 1,8")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each peer")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what the file of results has of these peers, measure the rest",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: benchmarks/results/")
    parser.add_argument("--md", type=Path, metavar="FILE", help="default: benchmarks/results/")
    return parser.parse_args(given)


def _names(asked: Sequence[str]) -> list[str]:
    from benchmarks.models import MODELS

    unknown = [name for name in asked if name != "all" and name not in MODELS]
    if unknown:
        raise UserError(f"no model {unknown[0]!r}; there are: {', '.join(MODELS)}")
    return list(MODELS) if "all" in asked else list(dict.fromkeys(asked))


def _batches(asked: str) -> list[int]:
    """The batch sizes that ``1,8`` stands for."""
    sizes = asked.split(",")
    if not all(size.isdecimal() and int(size) >= 1 for size in sizes):
        raise UserError(f"--batch {asked} is not one or more whole numbers of at least 1, as 1,8")
    return [int(size) for size in dict.fromkeys(sizes)]


def _about(machine: Machine | None, names: Sequence[str], threads: int) -> dict[str, Any]:
    from importlib.metadata import version

    about = harness.machine()
    about |= {n: version(n) for p in names if (n := peers.PEER_NAMES.get(p))}
    about["threads"] = threads
    if machine is None:
        return about | {"peak": "not measured: no C compiler"}
    return about | {
        "peak": f"{machine.flops / 1e9:.0f} Gflop/s",
        "copy": f"{machine.bandwidth / 1e9:.1f} GB/s",
    }


def run(given: argparse.Namespace) -> int:
    """Run what was asked for; 1 if a peer's answer is wrong."""
    peers.register()
    names, asked = _names(given.models), given.peers.split(",")
    check_peer_names(asked)
    cases = [(name, batch) for batch in _batches(given.batch) for name in names]
    label = "models" if len(names) > 1 else names[0]
    markdown = given.md or harness.RESULTS / f"{label}.md"
    data = given.json or markdown.with_suffix(".json")
    kept = model_tables.read_results(data, asked) if given.resume else []
    found = {(r.model, r.batch): r for r in kept if r.threads == given.threads}
    meter = peak_meter(given.threads)
    machine = None if meter is None else meter.machine
    about = _about(machine, asked, given.threads)
    missing = [case for case in cases if case not in found]
    with progress_bar() as tell:
        for i, (name, batch) in enumerate(missing):
            found[name, batch] = harness.run_case(
                name,
                asked,
                batch=batch,
                seed=given.seed,
                threads=given.threads,
                timing=Timing(rounds=given.rounds),
                gauge=meter,
                progress=lambda what, done, i=i, name=name: tell(
                    f"{name}: {what}", (i + done) / len(missing)
                ),
            )
            # After each model, so that an interrupted run keeps what it has.
            model_tables.write_results(list(found.values()), asked, about, machine, markdown, data)
    results = list(found.values())
    print_tables(model_tables.speed_table(results, asked, machine))
    if failed := harness.failures(results):
        print("\n" + "\n".join(failed))
    print(f"\n{markdown} and {data} hold these figures")
    return 1 if any(not v.correct for r in results for v in r.verdicts.values()) else 0


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: run(_arguments(None))))
