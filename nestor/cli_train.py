"""``nestor train``: a cost model from records."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.config import Config
from nestor.errors import OutputError, UserError
from nestor.tables import Table, print_tables

if TYPE_CHECKING:
    from nestor.autotune.records.record import Record
    from nestor.cost_model.dataset import Examples
    from nestor.cost_model.scores import Scores


def train_command(given: argparse.Namespace, config: Config) -> int:
    """Fit, judge and write a model."""
    from nestor.cost_model.training import TrainingOptions, evaluate, leave_family_out, train

    families = _families(given.families)
    _check_output(given.output)
    tests = _examples(_file_records(given.test), families) if given.test else None
    records = _file_records(given.records) if given.records else _database_records(config)
    examples = _without(_examples(records, families), tests)
    if len(examples) < 2:
        raise UserError(
            "there are no measured schedules to train on\n  fix: nestor tune MODEL, or --records"
        )
    options = TrainingOptions(rounds=given.rounds, seed=given.seed, threads=config.thread_count())
    # Without the test records the scores come from kernels held out; the model is then made anew.
    trained = train(examples, replace(options, refit=True))
    found = {"held out": trained.held_out}
    if tests is not None:
        found["tests"] = evaluate(trained, tests)
    if given.leave_family_out:
        whole = _joined(examples, tests)
        for family, scores in leave_family_out(whole, options).items():
            found[f"without {family}"] = scores
    if given.output:
        trained = replace(
            trained,
            ensemble=replace(
                trained.ensemble,
                card={**trained.ensemble.card, "scores": _plain(found)},
            ),
        )
        trained.save(Path(given.output))
    if given.json:
        print(json.dumps({"examples": len(examples), "scores": _plain(found)}))
    else:
        print_tables(*_tables(len(examples), found))
    return 0


def _plain(found: dict[str, Scores | None]) -> dict[str, Any]:
    return {name: asdict(scores) for name, scores in found.items() if scores is not None}


def _families(path: str | None) -> dict[str, str]:
    """What each kernel is, from a file: ``{digest: family}`` or ``{digest: {"family": …}}``."""
    if path is None:
        return {}
    try:
        data = json.loads(Path(path).read_text())
        return {k: v["family"] if isinstance(v, dict) else str(v) for k, v in data.items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path!r} is no JSON object of families by digest: {error}") from None


def _check_output(path: str | None) -> None:
    """Told before an hour of training rather than after."""
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise OutputError(f"cannot write {path!r}: there is no such folder")


def _file_records(paths: Iterable[str]) -> Iterator[Record]:
    from nestor.autotune.records.exchange import read_records

    for path in paths:
        yield from read_records(Path(path))


def _database_records(config: Config) -> Iterator[Record]:
    from nestor.autotune.records import Records

    with Records.open(config, create=False) as records:
        yield from records.iterate()


def _examples(records: Iterator[Record], families: dict[str, str]) -> Examples:
    from nestor.autotune.learning import measured_dataset
    from nestor.cost_model.dataset import make_examples

    return make_examples(measured_dataset(records, families))


def _without(examples: Examples, tests: Examples | None) -> Examples:
    """Examples of kernels that no test is about."""
    import numpy as np

    if tests is None:
        return examples
    tested = set(tests.workloads)
    return examples.take(np.array([w not in tested for w in examples.workloads], dtype=np.bool_))


def _joined(a: Examples, b: Examples | None) -> Examples:
    import numpy as np

    if b is None:
        return a
    offset = int(a.groups.max()) + 1
    return replace(
        a,
        features=np.concatenate([a.features, b.features]),
        target=np.concatenate([a.target, b.target]),
        groups=np.concatenate([a.groups, b.groups + np.int32(offset)]),
        families=(*a.families, *b.families),
        workloads=(*a.workloads, *b.workloads),
        roofline_ns=np.concatenate([a.roofline_ns, b.roofline_ns]),
    )


def _tables(examples: int, found: dict[str, Scores | None]) -> list[Table]:
    columns = (
        "judged on", ">kernels", ">schedules", ">rank correlation", ">best of 10", ">error of time",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for name, scores in found.items():
        if scores is None:
            continue
        rows.append(_row(name, scores.workloads, scores.examples, asdict(scores)))
        if not name.startswith("without"):
            for family, own in scores.by_family.items():
                rows.append(_row(f"  {family}", int(own["workloads"]), None, own))
    caption = (
        f"Trained on {examples} schedules. Rank correlation: Spearman's, within a kernel, mean. "
        "Best of 10: throughput of the best of the ten ranked first over that of the best measured."
    )
    return [Table(title="cost model", columns=columns, rows=tuple(rows), caption=caption)]


def _row(name: str, kernels: int, schedules: int | None, own: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        str(kernels),
        "" if schedules is None else str(schedules),
        f"{own['spearman']:.3f}",
        f"{own['top10']:.3f}",
        f"{own['mape']:.1%}",
    )
