"""What GPUs' code takes, without a GPU: ``python -m benchmarks.cubins [NAME …]``.

Every operator and every model of the collections at full size, in float32 and bfloat16, compiled
for sm_80, sm_90 and sm_100 with the default schedules: how many kernels, what a thread and a
program take at most, what spills (nothing may), how long it takes. Results are kept case by case,
so a run that is stopped goes on where it was; names compile again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nestor.config import Config
from nestor.errors import NestorError
from nestor.gpu_building import build_gpu_model
from nestor.tables import Table, print_tables, render_tables
from nestor.target.gpu import parse_gpu_target

RESULTS = Path(__file__).parent / "results" / "cubins.json"
TARGETS = ("sm_80", "sm_90", "sm_100")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}

Made = tuple[nn.Module, tuple[torch.Tensor, ...]]


def cases() -> dict[str, Callable[[], Made]]:
    """Operators and models, by name."""
    from benchmarks.models import MODELS
    from benchmarks.ops.registry import OPS

    def operator(name: str) -> Made:
        return OPS[name].module(), OPS[name].make_inputs(0)

    def model(name: str) -> Made:
        return MODELS[name].build(), MODELS[name].inputs(0, 1)

    return {
        **{name: lambda name=name: operator(name) for name in OPS},  # type: ignore[misc]
        **{name: lambda name=name: model(name) for name in MODELS},  # type: ignore[misc]
    }


def compiled(made: Made, dtype: torch.dtype, name: str) -> dict[str, Any]:
    """What the kernels of a module take, by target."""
    module, inputs = made[0].to(dtype), made[1]
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    targets = [parse_gpu_target(t) for t in TARGETS]
    with tempfile.TemporaryDirectory() as folder:
        config = Config.load(cache_dir=Path(folder))
        built = build_gpu_model(module, inputs, {}, config, targets, None, name=name)
        found: dict[str, Any] = {
            "launches": len(built.manifest.calls),
            "kernels": len(built.report().kernels),
            "externs": len(built.report().externs),
        }
        for target in targets:
            clock = time.perf_counter()
            code = built.code(target).values()
            seconds = time.perf_counter() - clock
            found[target.name] = {
                "seconds": built.report().compile_seconds.get(f"code for {target.name}", seconds),
                "registers": max((c.registers for c in code), default=0),
                "shared": max((c.shared_bytes for c in code), default=0),
                "limit": target.shared_bytes,
                "spilled": sum(c.spilled_bytes > 0 for c in code),
            }
    return found


def table(found: Mapping[str, Any]) -> Table:
    """One row a case."""
    rows = []
    for name, r in found.items():
        own = [r[t] for t in TARGETS] if "kernels" in r else []
        rows.append(
            (
                name,
                *(str(r.get(k, "–")) for k in ("launches", "kernels", "externs")),
                " / ".join(str(t["registers"]) for t in own),
                " / ".join(f"{t['shared'] / 1024:.0f}" for t in own),
                str(sum(t["spilled"] for t in own)) if own else r["error"],
                " / ".join(f"{t['seconds']:.1f}" for t in own),
            )
        )
    columns = (
        "case", ">launches", ">kernels", ">externs", ">registers", ">shared [KB]", ">spill",
        ">compile [s]",
    )  # fmt: skip
    done = [r for r in found.values() if "kernels" in r]
    spilled = sum(r[t]["spilled"] > 0 for r in done for t in TARGETS)
    over = sum(r[t]["shared"] > r[t]["limit"] for r in done for t in TARGETS)
    caption = (
        f"Registers of a thread, shared memory of a program, at most: {' / '.join(TARGETS)}. "
        f"{len(done)} of {len(found)} compile; {spilled} spill, {over} take too much shared memory."
    )
    return Table(title="Code for GPUs", columns=columns, rows=tuple(rows), caption=caption)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cubins", description=__doc__)
    parser.add_argument("names", nargs="*", help="operators or models, with :f32 or :bf16 or both")
    given = parser.parse_args(arguments)
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    every = {f"{n}:{d}": (make, d) for n, make in cases().items() for d in DTYPES}
    if unknown := [w for w in given.names if w not in every and f"{w}:f32" not in every]:
        parser.error(f"no case {unknown[0]!r}; there are: {', '.join(cases())}")
    wanted = [
        name
        for name in every
        if name in given.names
        or name.partition(":")[0] in given.names
        or not (given.names or name in known)
    ]
    with tempfile.TemporaryDirectory() as folder:
        # What Triton keeps of earlier runs would hide how long it takes.
        os.environ["TRITON_CACHE_DIR"] = folder
        for name in wanted:
            make, dtype = every[name]
            try:
                known[name] = compiled(make(), DTYPES[dtype], name.partition(":")[0])
            except NestorError as error:
                reason = str(error).splitlines()[0][:80]
                known[name] = {"error": f"{type(error).__name__}: {reason}"}
            print(f"{name}: {json.dumps(known[name])}", flush=True)
            ordered = {n: known[n] for n in every if n in known}
            RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
            text = render_tables([table(ordered)], width=120)
            RESULTS.with_suffix(".md").write_text(f"# Code for GPUs\n\n```\n{text}\n```\n")
    print_tables(table(known))
    return 0


if __name__ == "__main__":
    sys.exit(main())
