"""Kernels and models on a GPU beside PyTorch: ``python -m benchmarks.gpu [KIND] [CASE …]``.

Kinds: ``products``, ``memory``, ``attention``, ``models``. Each case is checked against float64
first; then all versions run in turns, the last-level cache emptied before each call, timed by the
device's events. Results are kept case by case, so a run that is stopped goes on where it was.

``--tune 120`` searches so many seconds a case first, and times what comes of it beside the untuned
kernels; what was measured is kept in ``benchmarks/records/gpu.jsonl.gz``, from where the next run
reads it.

Without a GPU, ``--device cpu --tiny`` runs everything at tiny sizes in Triton's interpreter, to see
that the script works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nestor.tables import Table, render_tables

RESULTS = Path(__file__).parent / "results"
RECORDS = Path(__file__).parent / "records" / "gpu.jsonl.gz"
ROUNDS = 41
_FLUSHED_BYTES = 256 << 20
"""Written before each call: more than any last-level cache holds."""

_ALLOWED = 4.0
"""Times PyTorch's own error against float64 that a result may be off."""

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How long each case is searched [s], and the URL of the records."""

    seconds: float
    records: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to compute.

    Attributes:
        load: makes a module and its inputs on a device; ``tiny``: at sizes for an interpreter.
        flops: operations. moved: bytes that have to be read and written; of all of them together.
        peers: PyTorch's versions by name; None: the module as it is.
    """

    name: str
    load: Callable[[torch.device, bool], tuple[nn.Module, tuple[torch.Tensor, ...]]]
    flops: float = 0.0
    moved: float = 0.0
    peers: Mapping[str, Any] | None = None


class Of(nn.Module):
    """A module of a function."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *given: torch.Tensor) -> Any:
        return self.function(*given)


def tensor(
    *shape: int, device: torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> torch.Tensor:
    """Normal values, the same on every machine."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(device=device, dtype=dtype)


# --------------------------------------------------------------------------------- the cases

GEMMS = (
    (8192, 8192, 8192),
    *((m, n, k) for m in (128, 512, 2048, 4096) for n, k in ((4096, 4096), (11008, 4096))),
    *((m, n, k) for m in (128, 512, 2048, 4096) for n, k in ((4096, 11008), (768, 768))),
    *((m, n, k) for m in (512, 4096) for n, k in ((3072, 768), (768, 3072))),
)


def _product(m: int, n: int, k: int) -> Case:
    def load(device: torch.device, tiny: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        a, b, c = (32, 48, 64) if tiny else (m, n, k)
        dtype = torch.float16 if tiny else torch.bfloat16
        with torch.device(device):
            module = nn.Linear(c, b, bias=False).to(dtype)
        return module, (tensor(a, c, device=device, dtype=dtype),)

    moved = 2.0 * (m * k + k * n + m * n)
    return Case(name=f"bf16_{m}x{n}x{k}", load=load, flops=2.0 * m * n * k, moved=moved)


def _memory(name: str, make: Callable[[int], nn.Module], shape: tuple[int, int]) -> Case:
    def load(device: torch.device, tiny: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        rows, columns = (6, 96) if tiny else shape
        module = make(columns).to(device)
        return module, (tensor(rows, columns, device=device, dtype=torch.float32),)

    return Case(name=name, load=load, moved=8.0 * math.prod(shape))


def _attention(tokens: int, causal: bool) -> Case:
    def load(device: torch.device, tiny: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        shape = (1, 2, 40, 32) if tiny else (1, 16, tokens, 128)
        dtype = torch.float32 if tiny else torch.bfloat16
        given = tuple(tensor(*shape, device=device, dtype=dtype, seed=n) for n in range(3))
        return Of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)), given

    backends = torch.nn.attention.SDPBackend
    flops = 4.0 * 16 * tokens * tokens * 128 / (2 if causal else 1)
    return Case(
        name=f"attention_{tokens}{'_causal' if causal else ''}",
        load=load,
        flops=flops,
        moved=2.0 * 4 * 16 * tokens * 128,
        peers={"flash": backends.FLASH_ATTENTION, "cudnn": backends.CUDNN_ATTENTION},
    )


def _model(name: str) -> Case:
    def load(device: torch.device, tiny: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        if tiny:
            from tests.helpers.triton_models import MODELS as TINY

            module, inputs = TINY["resnet"]()
            return module.eval(), inputs
        from benchmarks import models

        module, inputs_of = models.build(name)
        module = module.eval().to(device=device, dtype=torch.bfloat16)
        given = (x.to(device) for x in inputs_of(0, 1))
        return module, tuple(x.bfloat16() if x.is_floating_point() else x for x in given)

    return Case(name=name, load=load)


CASES: dict[str, tuple[Case, ...]] = {
    "products": tuple(_product(*shape) for shape in GEMMS),
    "memory": (
        _memory("copy", lambda n: Of(lambda x: x + 1), (16384, 4096)),
        _memory("gelu", lambda n: nn.GELU(), (16384, 4096)),
        _memory("softmax", lambda n: nn.Softmax(-1), (16384, 4096)),
        _memory("layer_norm", nn.LayerNorm, (16384, 4096)),
        _memory("rms_norm", nn.RMSNorm, (16384, 4096)),
        _memory("transpose", lambda n: Of(lambda x: x.t().contiguous()), (8192, 8192)),
        _memory("cumsum", lambda n: Of(lambda x: x.cumsum(-1)), (16384, 4096)),
    ),
    "attention": tuple(_attention(n, c) for n in (4096, 8192, 16384) for c in (False, True)),
    "models": tuple(
        map(_model, ("resnet50", "bert_base", "gpt2", "vit_base", "convnext_tiny", "llama_4x512"))
    ),
}

# --------------------------------------------------------------------------------- measuring


def versions(
    case: Case,
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    tiny: bool,
    tuning: Tuning | None,
) -> dict[str, Call]:
    """Ours, and PyTorch's; those that PyTorch cannot make here are left out with a line."""
    made = {"nestor": _ours(case, module, inputs, None)}
    if tuning is not None:
        made["untuned"] = made["nestor"]
        made["nestor"] = _ours(case, module, inputs, tuning)
    made["eager"] = lambda: module(*inputs)
    if not tiny:
        best = torch.compile(module, mode="max-autotune", dynamic=False)
        made["torch.compile"] = lambda: best(*inputs)
    for name, backend in (case.peers or {}).items():
        made[name] = functools.partial(_with_backend, backend, module, inputs)
    working = {}
    for name, call in made.items():
        try:
            with torch.inference_mode():
                call()
            working[name] = call
        except Exception as error:
            if name == "nestor":
                raise
            print(f"  {case.name}: {name} is left out: {str(error).splitlines()[0][:100]}")
    return working


def _with_backend(backend: Any, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    with torch.nn.attention.sdpa_kernel(backend):
        return module(*inputs)


def _ours(
    case: Case, module: nn.Module, inputs: tuple[torch.Tensor, ...], tuning: Tuning | None
) -> Call:
    """A case compiled by Nestor, after a search if there is to be one."""
    from nestor.autotune.choosing import tune_kernels
    from nestor.autotune.options import TuneOptions
    from nestor.config import Config
    from nestor.gpu_building import build_gpu_model, target_of
    from nestor.target.gpu import parse_gpu_target

    device, tune = inputs[0].device, None
    # Untuned kernels come from a folder without records.
    config = Config.load(cache=f"sqlite:///{tempfile.mkdtemp()}/none.db")
    if tuning is not None:
        config = Config.load(cache=tuning.records)
        options = TuneOptions(seconds=tuning.seconds)
        tune = lambda kernels: tune_kernels(kernels, config, options)  # noqa: E731
    target = target_of(device) if device.type == "cuda" else parse_gpu_target("sm_90")
    made = build_gpu_model(module, inputs, {}, config, [target], device, name=case.name, tune=tune)
    return lambda: made.executable(*inputs)


def timed(call: Call, device: torch.device, flushed: torch.Tensor | None) -> float:
    """Seconds of one call on the device, its cache emptied before."""
    if device.type != "cuda":
        clock = time.perf_counter()
        call()
        return time.perf_counter() - clock
    assert flushed is not None
    flushed.zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * begin.elapsed_time(end)


def interleaved(calls: Mapping[str, Call], device: torch.device, rounds: int) -> dict[str, Any]:
    """Times of a call [s], all in turns and each turn in another order."""
    flushed = None
    if device.type == "cuda":
        flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=device)
    found: dict[str, list[float]] = {name: [] for name in calls}
    order, draw = list(calls), random.Random(0)
    for turn in range(rounds + 3):
        draw.shuffle(order)
        for name in order:
            seconds = timed(calls[name], device, flushed)
            if turn >= 3:  # the first turns warm up
                found[name].append(seconds)
    return found


def check(
    case: Case, calls: Mapping[str, Call], module: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> dict[str, float]:
    """Largest errors against float64 over the scale. Raises: ``SystemExit`` for a wrong result."""
    errors = {}
    with torch.inference_mode():
        results = {name: calls[name]().double() for name in ("nestor", "eager")}
        wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        exact = module.double()(*wide)
    scale = float(exact.abs().max())
    for name, result in results.items():
        errors[name] = float((result - exact).abs().max()) / scale
    least = torch.finfo(inputs[0].dtype).eps if inputs[0].is_floating_point() else 2**-8
    if errors["nestor"] > _ALLOWED * max(errors["eager"], least):
        raise SystemExit(f"{case.name}: wrong by {errors}")
    return errors


def run_case(
    case: Case, device: torch.device, tiny: bool, rounds: int, tuning: Tuning | None = None
) -> dict[str, Any]:
    """Check a case, and time its versions."""
    module, inputs = case.load(device, tiny)
    clock = time.perf_counter()
    calls = versions(case, module, inputs, tiny, tuning)
    seconds = time.perf_counter() - clock
    with torch.inference_mode():
        times = interleaved(calls, device, rounds)
    errors = check(case, calls, *case.load(device, tiny))
    own = times["nestor"]
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {
        "seconds": medians,
        "over": {
            name: statistics.quantiles([b / a for a, b in zip(own, t)], n=4)
            for name, t in times.items()
            if name != "nestor"
        },
        "tflops": 1e-12 * case.flops / medians["nestor"],
        "gbps": 1e-9 * case.moved / medians["nestor"],
        "errors": errors,
        "compile_s": seconds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter",
    }


# --------------------------------------------------------------------------------- results


def table(kind: str, found: Mapping[str, Any]) -> Table:
    """One row a case."""
    peers = list(dict.fromkeys(p for r in found.values() for p in r["over"]))
    rows = tuple(
        (
            name,
            f"{1e6 * r['seconds']['nestor']:.1f}",
            *(f"{r['over'][p][1]:.3f}×" if p in r["over"] else "–" for p in peers),
            f"{r['tflops']:.0f}",
            f"{r['gbps']:.0f}",
        )
        for name, r in found.items()
    )
    columns = ("case", ">nestor [µs]", *(f">over {p}" for p in peers), ">TFLOP/s", ">GB/s")
    means = []
    for p in peers:
        ratios = [r["over"][p][1] for r in found.values() if p in r["over"]]
        means.append(f"over {p} {statistics.geometric_mean(ratios):.3f}")
    caption = f"Geometric means: {', '.join(means)}." if means else ""
    return Table(title=kind, columns=columns, rows=rows, caption=caption)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[], help=f"of {', '.join(CASES)}, or cases")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="sizes for an interpreter")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tune", type=float, metavar="SECONDS", help="search each case so long")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    wanted = given.kinds or list(CASES)
    if unknown := [w for w in wanted if w not in CASES and not any(_named(w, k) for k in CASES)]:
        parser.error(f"no kind or case {unknown[0]!r}")
    name = "gpu_tuned.json" if given.tune else "gpu.json"
    file = RESULTS / ("gpu_tiny.json" if given.tiny else name)
    tuning = None if given.tune is None else _opened_tuning(given.tune)
    known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for kind, cases in CASES.items():
        for case in cases:
            is_asked = case.name in wanted or (
                kind in wanted and case.name not in known.get(kind, {})
            )
            if not is_asked:
                continue
            result = run_case(case, device, given.tiny, given.rounds, tuning)
            known.setdefault(kind, {})[case.name] = result
            print(f"{case.name}: {json.dumps(result)}", flush=True)
            if not given.tiny:
                file.write_text(json.dumps(known, indent=1) + "\n")
                text = render_tables([table(k, f) for k, f in known.items()], width=120)
                file.with_suffix(".md").write_text(f"# GPU\n\n```\n{text}\n```\n")
                if tuning is not None:
                    _keep_records(tuning)
    print(render_tables([table(kind, found) for kind, found in known.items()]))
    return 0


def _opened_tuning(seconds: float) -> Tuning:
    """A database with what earlier runs measured."""
    from nestor.autotune.records import Records
    from nestor.autotune.records.exchange import import_records
    from nestor.config import Config

    tuning = Tuning(seconds=seconds, records=f"sqlite:///{tempfile.mkdtemp()}/records.db")
    if RECORDS.exists():
        with Records.open(Config.load(cache=tuning.records)) as records:
            import_records(records, RECORDS)
    return tuning


def _keep_records(tuning: Tuning) -> None:
    from nestor.autotune.records import Records
    from nestor.autotune.records.exchange import export_records
    from nestor.config import Config

    with Records.open(Config.load(cache=tuning.records)) as records:
        export_records(records, RECORDS)


def _named(name: str, kind: str) -> bool:
    return any(case.name == name for case in CASES[kind])


if __name__ == "__main__":
    sys.exit(main())
