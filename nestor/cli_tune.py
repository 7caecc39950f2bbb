"""``nestor tune``: search schedules for a model's kernels, watched on a terminal."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from nestor.cli_commands import check_writable
from nestor.cli_live import View, live_view
from nestor.cli_models import NamedModel, is_artifact, load_model
from nestor.cli_progress import status
from nestor.config import Config
from nestor.errors import UserError
from nestor.gpu_device import gpu_device
from nestor.tables import Table, format_seconds, print_tables
from nestor.target.gpu import GpuTarget

if TYPE_CHECKING:
    from nestor.autotune.program_search import ProgramTuning
    from nestor.autotune.tuner import Tuning
    from nestor.compiler import ModelKernels

_SHOWN = 20
"""Kernels in the final table; the rest take little time."""


def tune_command(given: argparse.Namespace, config: Config) -> int:
    """Search until the time or the trials are spent, and tell what was found."""
    from nestor.autotune.choosing import ModelTuner
    from nestor.autotune.options import TuneOptions, parse_seconds
    from nestor.building import build_model
    from nestor.gpu_building import build_gpu_model, target_of

    options = TuneOptions(
        # Without any limit a search could go on for hours that nobody asked for.
        seconds=parse_seconds(given.time or "60s") if given.time or given.trials is None else None,
        trials=given.trials,
        strategy=given.strategy,
        seed=given.seed,
        only=tuple(given.kernel),
    )
    named = _model(given.model)
    if given.report:
        _check_report(given.report)
    view = View(model=named.name, seconds=options.seconds)
    if given.peer:
        view.peer, view.peer_seconds = given.peer, _peer_seconds(given.peer, given.model, config)
    kernels: list[ModelKernels] = []
    with live_view(view) as show:
        tuner = ModelTuner(config, options, show)

        def tune(found: ModelKernels) -> Tuning:
            kernels.append(found)
            view.labels = _labels(found)
            return tuner.tune(found)

        setting: tuple[Any, ...] = (named.model, tuple(named.inputs), {}, config)
        more: dict[str, Any] = {"dynamic_shapes": named.dynamic_shapes, "name": named.name}
        decisions: ProgramTuning | None = None
        device = gpu_device(tuple(named.inputs), {})
        if device is None:
            on_cpu = build_model(*setting, **more, tune=tune, decide=tuner.decide)
            tuning, decisions = on_cpu.tuning, on_cpu.decisions
        else:
            on_gpu = (*setting, [target_of(device)], device)
            tuning = build_gpu_model(*on_gpu, **more, tune=tune).tuning
    assert tuning is not None
    if given.report:
        _write_report(given.report, view, tuning, kernels[0], config)
    if given.json:
        told = tuning_to_json(tuning) | _peer_to_json(view)
        if decisions is not None:
            told["decisions"] = decisions_to_json(decisions)
        print(json.dumps(told))
    else:
        print_tables(_table(view, tuning))
        if decisions is not None:
            print(_decided(decisions))
    return 0


def report_command(given: argparse.Namespace, config: Config) -> int:
    """Write the report of a model from what records know of its kernels; nothing is measured."""
    from nestor.autotune.choosing import recalled_tuning
    from nestor.building import model_kernels
    from nestor.gpu_building import gpu_model_kernels

    named = _model(given.model)
    _check_report(given.file)
    more: dict[str, Any] = {"dynamic_shapes": named.dynamic_shapes, "name": named.name}
    with status(f"finding the kernels of {named.name}"):
        device = gpu_device(tuple(named.inputs), {})
        if device is None:
            kernels = model_kernels(named.model, tuple(named.inputs), {}, config, **more)
        else:
            kernels = gpu_model_kernels(named.model, tuple(named.inputs), {}, device, **more)
    tuning = recalled_tuning(kernels, config)
    if not tuning.history:
        raise UserError(
            f"there are no records of {named.name}'s kernels {_where(kernels)}\n"
            f"fix: nestor tune {given.model}"
        )
    view = View(model=named.name, labels=_labels(kernels))
    _write_report(given.file, view, tuning, kernels, config)
    told = {"report": given.file, "trials": len(tuning.history)}
    print(json.dumps(told) if given.json else f"wrote {given.file}: {len(tuning.history)} trials")
    return 0


def _where(kernels: ModelKernels) -> str:
    """What kernels would run on, for a message."""
    if isinstance(kernels.target, GpuTarget):
        return "on this GPU"
    return f"on this CPU with {kernels.threads} thread{'s' * (kernels.threads != 1)}"


def _model(spec: str) -> NamedModel:
    if is_artifact(spec):
        raise UserError(f"{spec!r} is compiled already; give a model")
    return load_model(spec)


def _check_report(path: str) -> None:
    """Refuse what cannot be written before a search is spent on it."""
    from nestor.tune_plots import check_plotting

    check_plotting()
    check_writable(path)


def _write_report(
    path: str, view: View, tuning: Tuning, kernels: ModelKernels, config: Config
) -> None:
    from nestor.cost_model.ranking import chosen_model
    from nestor.tune_report import collect_report, write_report

    write_report(path, collect_report(view, tuning, kernels, chosen_model(config.cost_model)))


def _peer_seconds(peer: str, spec: str, config: Config) -> float:
    """Median time of a call of the model by a peer, in a process of its own [s]."""
    from nestor.benchmarking.turns import Timing, compare

    with status(f"timing {spec} by {peer}"):
        (found,) = compare(
            [peer],
            "nestor.cli_models:load_example",
            {"spec": spec, "files": []},
            threads=config.thread_count(),
            timing=Timing(rounds=5),
        )
    if found.failure or found.call_seconds is None:
        raise UserError(f"{peer}: {found.failure or 'no call was timed'}")
    return found.call_seconds.median


def _peer_to_json(view: View) -> dict[str, Any]:
    if view.peer_seconds is None:
        return {}
    return {"peer": view.peer, "peer_ns": view.peer_seconds * 1e9}


def _labels(kernels: ModelKernels) -> dict[str, str]:
    """What each kernel computes, by the name of its task."""
    return {f"k{number}": text for number, text in enumerate(kernels.operators)}


def tuning_to_json(tuning: Tuning) -> dict[str, Any]:
    """What came of a run, as plain data; times in nanoseconds a call of the model."""
    return {
        "seconds": tuning.seconds,
        "trials": tuning.trials,
        "remembered": tuning.remembered,
        "statuses": tuning.statuses,
        "interrupted": tuning.interrupted,
        "reason": tuning.reason,
        "kept_default": tuning.kept_default,
        "unmeasured": tuning.unmeasured,
        "default_ns": tuning.default_ns,
        "tuned_ns": tuning.tuned_ns,
        "kernels": [
            {
                "name": t.name,
                "digest": t.key.digest,
                "calls": t.calls,
                "trials": t.trials,
                "default_ns": t.calls * t.default_ns,
                "best_ratio": t.ratio,
                "confirmed_ratio": t.confirmed,
            }
            for t in tuning.tasks
        ],
    }


def decisions_to_json(found: ProgramTuning) -> dict[str, Any]:
    """What came of the search of a Program's own decisions, as plain data."""
    return {
        "seconds": found.seconds,
        "knobs": found.knobs,
        "point": dict(found.point),
        "ratio": found.ratio,
        "trials": [
            {"knob": t.knob, "value": t.value, "default_ns": t.default_ns, "ns": t.ns}
            for t in found.trials
        ],
    }


def _decided(found: ProgramTuning) -> str:
    """One line: what the passes decide otherwise."""
    tried = f"{len(found.trials)} other decisions of {found.knobs} open ones of the passes"
    if not found.point:
        return f"none of {tried} made the whole model faster"
    named = ", ".join(f"{name}: {value}" for name, value in found.point)
    return f"{tried} tried; the whole model is {1 / found.ratio:.3f}x as fast with {named}"


def _table(view: View, tuning: Tuning) -> Table:
    rows = []
    for task in tuning.tasks[:_SHOWN]:
        gain = "–" if task.confirmed is None else f"{1 / task.confirmed:.3f}×"
        changed = dict(task.default.point)
        winner = task.winner or task.default
        decisions = (f"{n}={v}" for n, v in winner.point if changed.get(n) != v)
        rows.append(
            (
                f"{task.name} {view.labels.get(task.name, '')[:40]}",
                str(task.calls),
                format_seconds(task.calls * task.default_ns / 1e9),
                str(task.trials),
                gain,
                " ".join(decisions)[:60],
            )
        )
    failed = {k: n for k, n in tuning.statuses.items() if k != "ok"}
    whole = tuning.default_ns / tuning.tuned_ns if tuning.tuned_ns else 1.0
    caption = (
        f"{tuning.trials} trials in {format_seconds(tuning.seconds)}"
        + (f", {tuning.remembered} remembered" if tuning.remembered else "")
        + f"; {tuning.reason}; kernels together {whole:.3f}× the default"
        + (f"; failed: {failed}" if failed else "")
        + ("; the whole model was no faster and keeps the default" if tuning.kept_default else "")
        + "".join(f"; {k} is not searched: {why}" for k, why in tuning.unmeasured.items())
        + (f"; {view.peer} {format_seconds(view.peer_seconds)} a call" if view.peer else "")
    )
    columns = ("kernel", ">calls", ">default", ">trials", ">gain", "decided otherwise")
    return Table(title=f"{view.model}, tuned", columns=columns, rows=tuple(rows), caption=caption)
