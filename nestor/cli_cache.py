"""``nestor cache``: what is kept between runs, and why something is not found in it."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.cache import ObjectCache
from nestor.cli_progress import status
from nestor.config import Config
from nestor.errors import UserError
from nestor.tables import Table, format_bytes, format_seconds, print_tables

if TYPE_CHECKING:
    from nestor.autotune.records import Record, Records

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def cache_command(given: argparse.Namespace, config: Config) -> int:
    """Run one of the commands under ``nestor cache``."""
    from nestor.cli_tune import report_command

    action: Callable[[argparse.Namespace, Config], int] = {
        "info": _info,
        "ls": _ls,
        "show": _show,
        "why": _why,
        "report": report_command,
        "export": _export,
        "import": _import,
        "merge": _merge,
        "prune": _prune,
        "verify": _verify,
    }[given.action]
    return action(given, config)


def _open(config: Config, *, create: bool = False) -> Records:
    """The records; a person who asks is told of a failure by an error, not by a warning."""
    from nestor.autotune.records import Records

    return Records.open(config, create=create, strict=True)


def _info(given: argparse.Namespace, config: Config) -> int:
    objects = ObjectCache(config.cache_dir)
    object_bytes = objects.size_bytes()
    with _open(config) as records:
        summary = records.summary()
    if given.json:
        found = {"folder": str(objects.folder), "bytes": object_bytes}
        print(json.dumps({"objects": found, "records": summary.to_dict()}))
        return 0
    # Paths stand outside the table, which would fold them.
    print(f"objects: {objects.folder} ({format_bytes(object_bytes)})")
    print(f"records: {summary.place} ({format_bytes(summary.size_bytes)})\n")
    rows = [("kernels", str(summary.kernels)), ("targets", str(summary.targets))]
    rows += [("records", str(summary.records))]
    rows += [(f"  {name}", str(n)) for name, n in summary.statuses.items()]
    rows += [(f"  by {name}", str(n)) for name, n in summary.generators.items()]
    if summary.oldest_ns is not None and summary.newest_ns is not None:
        rows += [("oldest", _date(summary.oldest_ns)), ("newest", _date(summary.newest_ns))]
    print_tables(Table(columns=("", ">"), rows=tuple(rows)))
    return 0


def _ls(given: argparse.Namespace, config: Config) -> int:
    if given.limit < 1:
        raise UserError(f"--limit {given.limit} is not at least 1")
    with _open(config) as records:
        kernels = records.kernels()
        place, skipped = records.place, records.skipped
    shown = kernels[: given.limit]
    if given.json:
        found = [
            {
                "kernel": k.kernel.digest,
                "family": k.kernel.family,
                "statements": k.kernel.statements,
                "operations": k.kernel.operations,
                "records": k.records,
                "measured": k.measured,
                "best_ratio": k.best_ratio,
                "last_ns": k.last_ns,
            }
            for k in shown
        ]
        print(json.dumps({"place": place, "kernels": found, "skipped": skipped}))
        return 0
    rows = tuple(
        (
            k.kernel.digest[:12],
            k.kernel.family[:8],
            str(k.kernel.statements),
            f"{k.kernel.operations:.3g}",
            str(k.records),
            str(k.measured),
            "–" if k.best_ratio is None else f"{k.best_ratio:.3f}",
            _date(k.last_ns),
        )
        for k in shown
    )
    columns = ("kernel", "family", ">statements", ">operations", ">records", ">measured", ">best")
    caption = f"{len(kernels)} kernels in {place}; best: time over the reference's"
    if skipped:
        caption += f"; {skipped} damaged: see nestor cache verify"
    print_tables(Table(columns=(*columns, ">newest"), rows=rows, caption=caption))
    return 0


def _show(given: argparse.Namespace, config: Config) -> int:
    with _open(config) as records:
        kernel = records.kernel(given.kernel)
        history = records.history(kernel.digest)
    if given.json:
        targets = {r.target.digest: dict(r.target.facts) for r in history}
        found = [{**r.to_json(), "ratio": r.ratio, "digest": r.digest} for r in history]
        data = {"kernel": kernel.digest, "text": kernel.text, "targets": targets, "records": found}
        print(json.dumps(data))
        return 0
    print(kernel.text)
    ranked = sorted(history, key=lambda r: (r.status != "ok", r.ratio or 0.0))
    rows = tuple(_record_row(r) for r in ranked[: given.limit])
    columns = ("status", ">over reference", ">time", ">threads", "target", "generator", "tuned by")
    caption = f"{len(history)} records, the best {len(rows)} shown"
    print_tables(Table(columns=(*columns, "what"), rows=rows, caption=caption))
    if ranked and ranked[0].status == "ok":
        from nestor.ir.schedule import format_schedule

        print(f"\nbest schedule:\n{format_schedule(ranked[0].schedule) or '(as written)'}")
    return 0


def _record_row(record: Record) -> tuple[str, ...]:
    time_ns, ratio = record.time_ns, record.ratio
    return (
        record.status,
        "–" if ratio is None else f"{ratio:.3f}",
        format_seconds(None if time_ns is None else time_ns * 1e-9),
        str(record.threads),
        record.target.digest[:8],
        record.generator,
        f"{record.strategy} #{record.trial}" if record.strategy else "–",
        (record.detail.strip().splitlines() or [""])[0][:60],
    )


def _why(given: argparse.Namespace, config: Config) -> int:
    from nestor.autotune.records import KernelKey, TargetKey, current_generator, find_difference
    from nestor.building import model_kernels
    from nestor.cli_models import is_artifact, load_model

    if is_artifact(given.model):
        raise UserError(f"{given.model!r} is compiled already; give a model")
    named = load_model(given.model)
    with status(f"finding the kernels of {named.name}"):
        found = model_kernels(
            named.model,
            named.inputs,
            {},
            config,
            dynamic_shapes=named.dynamic_shapes,
            name=named.name,
        )
    target = TargetKey.of(found.target)
    with _open(config) as records:
        findings = [
            find_difference(records, KernelKey.of(k.kernel), target, found.threads)
            for k in found.kernels
        ]
        place = records.place
    if given.json:
        entries = [_finding_json(f, n) for f, n in zip(findings, found.calls)]
        about = {"model": named.name, "place": place, "threads": found.threads}
        about |= {"target": dict(target.facts), "generator": current_generator()}
        print(json.dumps(about | {"kernels": entries}))
        return 0
    rows: list[tuple[str, ...]] = []
    for finding, calls in zip(findings, found.calls):
        rows += _finding_rows(finding, calls)
    hits = sum(f.record is not None for f in findings)
    print_tables(
        Table(
            title=f"{named.name}, {found.threads} thread{'s' * (found.threads != 1)}",
            columns=("kernel", ">calls", "record", "what differs", "wanted", "nearest record"),
            rows=tuple(rows),
            caption=f"{hits} of {len(findings)} kernels have a record in {place}",
        )
    )
    return 0


def _finding_json(finding: Any, calls: int) -> dict[str, Any]:
    return {
        "kernel": finding.kernel.digest,
        "calls": calls,
        "record": finding.record and finding.record.digest,
        "ratio": finding.record and finding.record.ratio,
        "nearest": finding.nearest and finding.nearest.digest,
        "differences": [
            {"field": d.field, "wanted": d.wanted, "found": d.found} for d in finding.differences
        ],
    }


def _finding_rows(finding: Any, calls: int) -> list[tuple[str, ...]]:
    """A line for a kernel with a record or without any, else one for each difference."""
    name = finding.kernel.digest[:12]
    if finding.record is not None:
        return [(name, str(calls), f"{finding.record.ratio:.3f} of the reference", "", "", "")]
    if finding.nearest is None:
        return [(name, str(calls), "none", "no kernel like it was ever measured", "", "")]
    near = finding.nearest.kernel.digest[:12]
    lines = [(d.field, d.wanted, d.found) for d in finding.differences]
    return [
        (name, str(calls), f"none; nearest is of {near}", *line) if n == 0 else ("", "", "", *line)
        for n, line in enumerate(lines)
    ]


def _export(given: argparse.Namespace, config: Config) -> int:
    with _open(config) as records:
        count = records.export(given.file)
        skipped = records.skipped
    size = Path(given.file).stat().st_size
    if given.json:
        data = {"file": given.file, "records": count, "skipped": skipped, "bytes": size}
        print(json.dumps(data))
    else:
        left_out = f"; {skipped} damaged ones left out" if skipped else ""
        print(f"wrote {count} records to {given.file} ({format_bytes(size)}){left_out}")
    return 0


def _import(given: argparse.Namespace, config: Config) -> int:
    with _open(config, create=True) as records:
        return _tell_added(given, records.place, records.import_(given.file))


def _merge(given: argparse.Namespace, config: Config) -> int:
    with _open(config, create=True) as records:
        return _tell_added(given, records.place, records.merge(given.database))


def _tell_added(given: argparse.Namespace, place: str, counts: tuple[int, int, int]) -> int:
    added, known, refused = counts
    if given.json:
        print(json.dumps({"place": place, "added": added, "known": known, "refused": refused}))
    else:
        damaged = f", {refused} refused: damaged" if refused else ""
        print(f"{added} records added to {place}, {known} were there already{damaged}")
    return 0


def _prune(given: argparse.Namespace, config: Config) -> int:
    age_s = parse_age("--older-than", given.older_than)
    if given.keep_best < 0:
        raise UserError(f"--keep-best {given.keep_best} is not at least 0")
    with _open(config) as records:
        before_ns = time.time_ns() - int(age_s * 1e9)
        removed = records.prune(before_ns=before_ns, keep_best=given.keep_best)
        summary = records.summary()
    if given.json:
        print(json.dumps({"removed": removed, "records": summary.to_dict()}))
    else:
        print(f"{removed} records removed from {summary.place}, {summary.records} left")
    return 0


def _verify(given: argparse.Namespace, config: Config) -> int:
    with _open(config) as records:
        found = records.verify()
    if given.json:
        print(
            json.dumps(
                {
                    "place": found.place,
                    "sound": found.is_sound,
                    "kernels": found.kernels,
                    "targets": found.targets,
                    "records": found.records,
                    "bad": found.bad,
                    "integrity": found.integrity,
                    "problems": found.problems,
                }
            )
        )
        return 0 if found.is_sound else 1
    lines = [f"pages: {line}" for line in found.integrity] + found.problems
    if found.bad > len(found.problems):
        lines.append(f"… and {found.bad - len(found.problems)} more")
    counts = f"{found.records} records, {found.kernels} kernels, {found.targets} targets"
    verdict = "sound" if found.is_sound else f"not sound: {found.bad} bad entries"
    print("\n".join([*lines, f"{found.place}: {counts}: {verdict}"]))
    return 0 if found.is_sound else 1


def parse_age(option: str, text: str) -> float:
    """``90d`` → seconds; units s, m, h, d, w. Raises: ``UserError``."""
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    if not match:
        raise UserError(f"{option}: {text!r} is not an age; give a number and s, m, h, d or w")
    return float(int(match[1]) * _UNITS_S[match[2]])


def _date(time_ns: int) -> str:
    """Local date and time."""
    try:
        moment = datetime.datetime.fromtimestamp(time_ns / 1e9)
    except (ValueError, OverflowError, OSError):
        return "–"
    return moment.strftime("%Y-%m-%d %H:%M")
