"""``nestor compile``, ``nestor run`` and ``nestor bench``."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nestor.benchmarking.outputs import arrays as flat_arrays
from nestor.cli_inputs import describe_array, random_inputs, read_inputs, write_arrays
from nestor.cli_models import NamedModel, is_artifact, load_model
from nestor.cli_progress import progress_bar, status
from nestor.config import Config
from nestor.errors import OutputError, UserError
from nestor.tables import Table, format_bytes, format_seconds, print_tables


def compile_command(given: argparse.Namespace, config: Config) -> int:
    """Compile a model into an artifact and tell what was done."""
    if is_artifact(given.model):
        raise UserError(f"{given.model!r} is compiled already; give a model")
    check_writable(given.output)
    named = load_model(given.model)
    with status(f"compiling {named.name}"):
        # Strict: an artifact runs where no PyTorch is, so an operator left to it is refused now.
        compiled = _compile(named, config, strict=True)
        compiled.save(given.output)
    report = compiled.report()
    size = Path(given.output).stat().st_size
    if given.json:
        print(json.dumps(report.to_dict() | {"artifact": given.output, "artifact_bytes": size}))
    else:
        print_tables(*report.tables(schedules=given.schedules))
        print(f"\nwrote {given.output} ({format_bytes(size)})")
    return 0


def _compile(named: NamedModel, config: Config, *, strict: bool) -> Any:
    """``nestor.compile`` with what the command line and the model's function say."""
    import nestor

    return nestor.compile(
        named.model,
        named.inputs,
        target=config.target,
        dynamic_shapes=named.dynamic_shapes,
        strict=strict,
        threads=config.threads,
        name=named.name,
    )


def check_writable(output: str) -> None:
    """Refuse a path that cannot be written before minutes are spent on it."""
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {output!r}: no folder {str(folder)!r}")
    if Path(output).is_dir():
        raise OutputError(f"cannot write {output!r}: it is a folder")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write {output!r}: no permission in {str(folder)!r}")


def run_command(given: argparse.Namespace, config: Config) -> int:
    """Run a model or an artifact once and show its outputs."""
    call, inputs, name = _runnable(given, config)
    start = time.perf_counter()
    outputs = flat_arrays(call(*inputs))
    seconds = time.perf_counter() - start
    if given.output:
        write_arrays(given.output, outputs)
    described = [describe_array(i, a) for i, a in enumerate(outputs)]
    if given.json:
        print(json.dumps({"model": name, "seconds": seconds, "outputs": described}))
        return 0
    rows = tuple(
        (
            str(d["output"]),
            "×".join(map(str, d["shape"])) or "scalar",
            d["dtype"],
            *(f"{d[k]:.6g}" if k in d else "–" for k in ("min", "max", "mean")),
        )
        for d in described
    )
    columns = (">output", "shape", "dtype", ">min", ">max", ">mean")
    caption = f"one call, {format_seconds(seconds)}"
    print_tables(Table(title=name, columns=columns, rows=rows, caption=caption))
    return 0


def _runnable(
    given: argparse.Namespace, config: Config
) -> tuple[Callable[..., Any], Sequence[Any], str]:
    """Something to call, its inputs, and its name."""
    files = read_inputs(given.input)
    if is_artifact(given.model):
        import nestor

        loaded = nestor.load(given.model, threads=config.threads)
        if not files and given.random is None:
            wanted = ", ".join(_wanted_inputs(loaded.manifest)) or "none"
            raise UserError(
                f"{given.model} needs inputs: {wanted}\n"
                "  fix: --input FILE.npy for each, or --random SEED to try it"
            )
        call = _through_cpu(loaded) if loaded.manifest.target.is_gpu else loaded
        return call, files or random_inputs(loaded.manifest, given.random), loaded.manifest.name
    if given.random is not None:
        raise UserError("--random is for artifacts; a model has example inputs")
    named = load_model(given.model)
    if files:
        import torch

        named = NamedModel(
            name=named.name,
            model=named.model,
            inputs=tuple(torch.from_numpy(a) for a in files),
            dynamic_shapes=named.dynamic_shapes,
        )
    with status(f"compiling {named.name}"):
        compiled = _compile(named, config, strict=False)
    return compiled, named.inputs, named.name


def _through_cpu(loaded: Any) -> Callable[..., Any]:
    """A model on a GPU, called with arrays in the CPU's memory."""
    import torch
    from torch.utils import _pytree

    device = loaded.executable.device

    def call(*inputs: Any) -> Any:
        outputs = loaded(*(torch.as_tensor(x).to(device) for x in inputs))
        return _pytree.tree_map_only(torch.Tensor, lambda t: t.cpu(), outputs)

    return call


def _wanted_inputs(manifest: Any) -> Iterator[str]:
    """Name, dtype and shape of each input of an artifact."""
    from nestor.runtime.dims import format_shape

    for spec in manifest.inputs:
        if spec.kind == "tensor" and spec.slot is not None:
            slot = manifest.slots[spec.slot]
            yield f"{spec.name} {slot.dtype}{format_shape(slot.shape)}"


def bench_command(given: argparse.Namespace, config: Config) -> int:
    """Time a model by several peers in turns."""
    from nestor.benchmarking.turns import Timing, compare

    artifact = is_artifact(given.model)
    if given.rounds < 1:
        raise UserError(f"--rounds {given.rounds} is not at least 1")
    peers = (given.peers or ("artifact" if artifact else "eager,nestor")).split(",")
    if artifact:
        if peers != ["artifact"]:
            raise UserError("an artifact has no peers; give its model to compare with eager")
        loader = "nestor.cli_inputs:load_artifact_example"
        arguments = {"path": given.model, "files": given.input, "seed": given.random or 0}
    else:
        loader = "nestor.cli_models:load_example"
        arguments = {"spec": given.model, "files": given.input}
    threads = config.thread_count()
    with progress_bar() as progress:
        results = compare(
            peers,
            loader,
            arguments,
            threads=threads,
            timing=Timing(rounds=given.rounds),
            progress=progress,
        )
    if all(r.failure for r in results):
        raise UserError("\n".join(f"{r.name}: {r.failure}" for r in results))
    if given.json:
        data = {"model": given.model, "threads": threads, "peers": [r.to_dict() for r in results]}
        print(json.dumps(data))
    else:
        print_tables(peers_table(given.model, threads, results))
    return 0


def peers_table(name: str, threads: int, results: Sequence[Any]) -> Table:
    """What ``compare`` measured, for people."""
    rows = []
    for r in results:
        if r.failure:
            rows.append((r.name, "–", "–", "–", "–", r.failure.splitlines()[0]))
            continue
        call, ratio = r.call_seconds, r.ratio
        rows.append(
            (
                r.name,
                format_seconds(call.median),
                f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})" if ratio else "–",
                format_seconds(r.compile_seconds) if r.compile_seconds else "–",
                format_bytes(r.peak_bytes),
                r.note,
            )
        )
    base = next((r.name for r in results if not r.failure), "")
    return Table(
        title=f"{name}, {threads} thread{'s' * (threads != 1)}",
        columns=("peer", ">call", f">speed against {base}", ">compile", ">memory", "note"),
        rows=tuple(rows),
        caption="median of paired ratios (quartiles); above 1 is faster; memory of a call beside "
        "the loaded model",
    )
