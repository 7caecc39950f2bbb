"""``python -m benchmarks.ops NAME…``: time operators against their peers, taking turns."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import isa, peers
from benchmarks.harness import RESULTS, failures, machine
from benchmarks.ops import registry, tables
from benchmarks.ops.runner import Measured, measure
from benchmarks.roofline import Machine, peak_meter
from nestor.benchmarking.peers import check_peer_names
from nestor.benchmarking.turns import Timing
from nestor.cli import run_guarded
from nestor.cli_progress import progress_bar
from nestor.errors import UserError
from nestor.tables import print_tables

PEERS = "eager,compile,ort,openvino,nestor"


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ops",
        description="Time single operators against their peers, taking turns.",
        epilog="example:\n  python -m benchmarks.ops gemm_1024 'conv*' --peers eager,nestor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "ops", nargs="*", metavar="OP", help="names, patterns or groups; default: every operator"
    )
    parser.add_argument("--list", action="store_true", help="print the operators and stop")
    parser.add_argument(
        "--peers", default=None, help=f"of {PEERS}; ratios: to the first and the best"
    )
    parser.add_argument(
        "--isa",
        choices=isa.ISAS,
        default="native",
        help="limit every peer to these instructions and check that it keeps to them; peers that "
        f"cannot be limited ({', '.join(isa.UNLIMITED)}) are left out",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11, help="turns of each peer")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="let the C library keep freed memory in every peer's process: without the cost of "
        "fresh pages, which weighs on large outputs of peers without an allocator of their own",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what the file of results has of these peers, measure the rest",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.md",
        help="write the table there and JSON beside it; default: benchmarks/results/ops.md (of "
        "--isa avx2: ops_avx2.md) for a run of every operator and peer, else nowhere",
    )
    return parser.parse_args(given)


def _about(
    peaks: Machine | None, given: argparse.Namespace, names: Sequence[str]
) -> dict[str, Any]:
    from importlib.metadata import version

    about = machine()
    for name in names:
        if package := peers.PEER_NAMES.get(name):
            about[package] = version(package)
    about["threads"] = given.threads
    if given.isa != "native":
        without = " and ".join(isa.UNLIMITED)
        about["instructions"] = (
            f"{given.isa} (peers limited by their own switches, and checked; {without} has none)"
        )
    if peaks is None:
        return about | {"peak": "not measured: no C compiler"}
    return about | {
        "peak": f"{peaks.flops / 1e9:.0f} Gflop/s",
        "copy": f"{peaks.bandwidth / 1e9:.1f} GB/s",
    }


def _output(given: argparse.Namespace, count: int, names: Sequence[str]) -> Path | None:
    """Where results are written: a part of the suite must not replace the whole one's figures."""
    if given.output is not None:
        return Path(given.output).with_suffix(".md")
    every = isa.default_peers(given.isa, PEERS)
    if count != len(registry.OPS) or set(names) != set(every.split(",")):
        return None
    return RESULTS / ("ops.md" if given.isa == "native" else f"ops_{given.isa}.md")


def run(given: argparse.Namespace) -> int:
    """Run what was asked for; 1 if Nestor's answer is wrong or Nestor fails."""
    peers.register()
    cases = registry.choose(given.ops)
    names = (given.peers or isa.default_peers(given.isa, PEERS)).split(",")
    if given.list:
        print("\n".join(f"{c.group:12} {c.name}" for c in cases))
        return 0
    check_peer_names(names)
    isa.limit_peers(given.isa, names, os.environ)
    if given.rounds < 1 or given.threads < 1:
        raise UserError("--rounds and --threads are at least 1")
    markdown = _output(given, len(cases), names)
    # Processes that this one starts, a compiler's among them, ask OpenMP for its default.
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    if given.keep_memory:
        # Read by glibc when a process starts: no mapping of its own for a large block, no trimming.
        os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(1 << 36))
    meter = peak_meter(given.threads, 256 if given.isa == "avx2" else None)
    peaks = None if meter is None else meter.machine
    measured: list[Measured] = []
    if given.resume and markdown is not None:
        measured = tables.read_results(markdown.with_suffix(".json"), names, peaks)
    missing = [case for case in cases if case.name not in {m.case.name for m in measured}]
    with progress_bar() as tell:
        for i, case in enumerate(missing):
            measured.append(
                measure(
                    case,
                    names,
                    peaks,
                    gauge=meter,
                    seed=given.seed,
                    threads=given.threads,
                    timing=Timing(rounds=given.rounds),
                    progress=lambda what, done, i=i, case=case: tell(
                        f"{case.name}: {what}", (i + done) / len(missing)
                    ),
                )
            )
            # After each operator, so that an interrupted run keeps what it has.
            if markdown is not None:
                tables.write_results(measured, names, _about(peaks, given, names), markdown)
    peaks = None if meter is None else meter.measure_bandwidth_again()
    about = _about(peaks, given, names)
    measured = [dataclasses.replace(m, machine=peaks) for m in measured]
    _show(measured, names, about, as_json=given.json)
    if markdown is not None:
        tables.write_results(measured, names, about, markdown)
        print(f"wrote {markdown} and {markdown.with_suffix('.json')}", file=sys.stderr)
    own = [m.result for m in measured]
    failed = any(p.name == "nestor" and p.failure for r in own for p in r.peers)
    return 1 if failed or tables.summary(measured)["wrong"] else 0


def _show(
    measured: Sequence[Measured], names: Sequence[str], about: dict[str, Any], *, as_json: bool
) -> None:
    if as_json:
        print(json.dumps(tables.to_json(measured, names, about), indent=1))
        return
    print(", ".join(f"{k}: {v}" for k, v in about.items()))
    print_tables(tables.speed_table(measured, names))
    lines = [*tables.summary_lines(measured), *failures([m.result for m in measured])]
    if lines:
        print("\n" + "\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_guarded(lambda: run(_arguments(None))))
