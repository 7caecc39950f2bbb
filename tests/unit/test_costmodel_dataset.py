"""Data sets: what is written comes back; killed writers and foreign lines do no harm."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from nestor.cost_model.dataset import (
    Dataset,
    DatasetWriter,
    Sample,
    Workload,
    make_examples,
    read_dataset,
)
from nestor.cost_model.feature_table import FEATURES
from nestor.errors import UserError
from nestor.ir.parser import parse_program
from nestor.ir.schedule import Parallel, Schedule, Tile, Vectorize
from nestor.target.cpu import CpuTarget

TARGET = CpuTarget(
    cpu="x86-64-v4", features=("avx",), vector_bits=512, vector_registers=32, fma_bits_per_cycle=512
)
COPY = """program kernel {
  input A: f32[64, 256]
  output B: f32[64, 256]
  statement S over { 0 <= i < 64, 0 <= j < 256 }
    B[i, j] = A[i, j] * 2.0:f32
}"""
WORKLOAD = Workload(family="pointwise", kernel=parse_program(COPY), shared={"S": ("i", "j")})
SCHEDULE: Schedule = (
    Tile(loop="S.j", size=16),
    Vectorize(loop="S.j.i"),
    Parallel(loop="S.i"),
)


def sample(schedule: Schedule, *seconds: float, status: str = "ok", threads: int = 1) -> Sample:
    return Sample(
        workload=WORKLOAD.id,
        target=TARGET.fingerprint(),
        threads=threads,
        schedule=schedule,
        seconds=seconds,
        status=status,
    )


def written(path: Path) -> list[Sample]:
    samples = [sample((), 4e-5, 5e-5, 6e-5), sample(SCHEDULE, 1e-6), sample((), status="crashed")]
    DatasetWriter(path).append(WORKLOAD, TARGET, 1, samples)
    return samples


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.jsonl.gz"
    samples = written(path)
    data = read_dataset([path])
    assert data.samples == samples
    assert data.workloads == {WORKLOAD.id: WORKLOAD}
    assert data.targets == {TARGET.fingerprint(): TARGET}
    assert data.families() == {"pointwise": 1}


def test_appending_repeats_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl.gz"
    written(path)
    DatasetWriter(path).append(WORKLOAD, TARGET, 1, [sample(SCHEDULE, 2e-6)])
    lines = [json.loads(x) for x in gzip.decompress(path.read_bytes()).splitlines()]
    assert [x["kind"] for x in lines] == ["target", "workload", *["sample"] * 4]


def test_files_merge(tmp_path: Path) -> None:
    paths = [tmp_path / "a.gz", tmp_path / "b.gz"]
    for p in paths:
        written(p)
    data = read_dataset(paths)
    assert (len(data.workloads), len(data.samples)) == (1, 6)


def test_a_torn_end_costs_only_what_was_being_written(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl.gz"
    samples = written(path)
    whole = path.read_bytes()
    DatasetWriter(path).append(WORKLOAD, TARGET, 1, [sample(SCHEDULE, 2e-6)])
    complete = path.read_bytes()
    for cut in range(len(whole), len(complete)):
        path.write_bytes(complete[:cut])
        assert read_dataset([path]).samples == samples
        DatasetWriter(path).append(WORKLOAD, TARGET, 1, [sample(SCHEDULE, 3e-6)])
        assert read_dataset([path]).samples == [*samples, sample(SCHEDULE, 3e-6)]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{",
        b'{"kind": "model"}',
        b'{"kind": "workload", "id": "0", "family": "x", "kernel": "y", "shared": {}}',
        b'{"kind": "sample", "workload": "0", "target": "0"}',
        b'{"kind": "target", "fingerprint": "0", "target": {}}',
    ],
)
def test_foreign_lines_are_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "run.jsonl.gz"
    written(path)
    with path.open("ab") as file:
        file.write(gzip.compress(line + b"\n"))
    with pytest.raises(UserError, match=r"run.jsonl.gz: line 6"):
        read_dataset([path])


@pytest.mark.parametrize("seconds", ["[0.0]", "[-1.0]", "[NaN]", '["x"]'])
def test_times_are_positive(tmp_path: Path, seconds: str) -> None:
    path = tmp_path / "run.jsonl.gz"
    written(path)
    text = gzip.decompress(path.read_bytes()).replace(b'"seconds":[1e-06]', b'"seconds":S')
    path.write_bytes(gzip.compress(text.replace(b"S}", seconds.encode() + b"}")))
    with pytest.raises(UserError, match="line 4"):
        read_dataset([path])


def test_samples_of_another_workload_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not one of"):
        DatasetWriter(tmp_path / "x").append(WORKLOAD, TARGET, 2, [sample((), 1e-6)])


def test_examples_are_fractions_of_the_roofline() -> None:
    data = Dataset()
    data.add(WORKLOAD, TARGET)
    data.samples = [
        sample((), 4e-5, 5e-5, 6e-5),
        sample(SCHEDULE, 1e-5),
        sample(SCHEDULE, 1e-5, threads=2),
        sample((), status="timed out"),
        sample((Tile(loop="S.q", size=3),), 1e-5),  # of another version: no such loop
    ]
    examples = make_examples(data)
    assert examples.features.shape == (3, len(FEATURES))
    assert examples.groups.tolist() == [0, 0, 1]
    assert examples.target[1] - examples.target[0] == pytest.approx(np.log2(5), abs=1e-5)
    expected = np.log2(examples.roofline_ns[0] / 5e4)
    assert examples.target[0] == pytest.approx(expected, abs=1e-5)
    some = examples.take(np.array([False, True, True]))
    assert len(some) == 2 and some.groups.tolist() == [0, 1]
