"""Measured schedules on disk, and the matrices that a model is fitted to.

A file is gzip over lines of JSON, data only: no line names a path, a host or a person. Each
``append`` writes whole gzip members, so a writer that is killed leaves at most one torn member at
the end, which the next one cuts off. Lines:

* ``{"kind": "target", "fingerprint": …, "target": {…}}``
* ``{"kind": "workload", "id": …, "family": …, "kernel": TEXT, "shared": {…}}``: the kernel as the
  IR's text, and the indices that its statements share (for the search space)
* ``{"kind": "sample", "workload": …, "target": …, "threads": …, "schedule": […], "status": …,
  "seconds": […]}``

A sample refers to a target and a workload on an earlier line.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestor.cost_model.features import FEATURES, FEATURES_VERSION, KernelFeatures
from nestor.cost_model.kernel_facts import kernel_facts
from nestor.errors import UserError
from nestor.ir.parser import parse_program
from nestor.ir.printer import print_program
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule, schedule_from_json, schedule_to_json
from nestor.target.cpu import CpuTarget

MAX_LINE_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A kernel that was measured: canonical, and of which family (``gemm``, ``softmax``, …)."""

    family: str
    kernel: Program
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Digest of the kernel's text [hex]."""
        return workload_id(self.text)

    @property
    def text(self) -> str:
        """The kernel as text."""
        return print_program(self.kernel)


def workload_id(text: str) -> str:
    """Digest of a kernel's text [hex]."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One schedule of one workload, measured.

    Attributes: target: fingerprint. seconds: times of single runs; empty unless ``status`` is
        ``ok``.
    """

    workload: str
    target: str
    threads: int
    schedule: Schedule
    seconds: tuple[float, ...]
    status: str = "ok"


@dataclass(slots=True)
class Dataset:
    """What one or more files hold; later samples of equal schedules stand beside earlier ones."""

    targets: dict[str, CpuTarget] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def add(self, workload: Workload, target: CpuTarget) -> tuple[str, str]:
        """Enter a workload and a target; returns what samples name them by."""
        self.targets[target.fingerprint()] = target
        key = workload.id
        self.workloads.setdefault(key, workload)
        return key, target.fingerprint()

    def families(self) -> dict[str, int]:
        """Workloads of each family."""
        out: dict[str, int] = {}
        for w in self.workloads.values():
            out[w.family] = out.get(w.family, 0) + 1
        return dict(sorted(out.items()))


class DatasetWriter:
    """Appends to a file; one writer a file.

    Args: path: made if it is not there; a torn end is cut off.
    """

    def __init__(self, path: Path):
        self.path = path
        self._known: set[str] = set()
        if path.exists():
            end = _whole_bytes(path)
            if end < path.stat().st_size:
                os.truncate(path, end)
            known = read_dataset([path])
            self._known = {*known.targets, *known.workloads}

    def append(
        self, workload: Workload, target: CpuTarget, threads: int, samples: Iterable[Sample]
    ) -> None:
        """Write samples of one workload, and what they refer to if that is new; then sync.

        Raises: ``UserError`` if a sample is of another workload, target or number of threads.
        """
        key, fingerprint = workload.id, target.fingerprint()
        lines: list[dict[str, Any]] = []
        if fingerprint not in self._known:
            lines.append({"kind": "target", "fingerprint": fingerprint, "target": target.to_json()})
        if key not in self._known:
            shared = {k: list(v) for k, v in workload.shared.items()}
            lines.append(
                {
                    "kind": "workload",
                    "id": key,
                    "family": workload.family,
                    "kernel": workload.text,
                    "shared": shared,
                }
            )
        for s in samples:
            if (s.workload, s.target, s.threads) != (key, fingerprint, threads):
                raise UserError(f"a sample of {s.workload} on {s.target} is not one of {key}")
            lines.append(_sample_json(s))
        text = "".join(json.dumps(x, separators=(",", ":")) + "\n" for x in lines)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(gzip.compress(text.encode(), mtime=0))
            file.flush()
            os.fsync(file.fileno())
        self._known |= {key, fingerprint}


def _sample_json(s: Sample) -> dict[str, Any]:
    return {
        "kind": "sample",
        "workload": s.workload,
        "target": s.target,
        "threads": s.threads,
        "schedule": schedule_to_json(s.schedule),
        "status": s.status,
        "seconds": [float(f"{x:.6g}") for x in s.seconds],
    }


def _members(path: Path) -> Iterator[tuple[bytes, int]]:
    """Contents of each whole gzip member, and where it ends; stops at a torn one."""
    data = memoryview(path.read_bytes())
    at = 0
    while at < len(data):
        unpack = zlib.decompressobj(wbits=31)
        content: list[bytes] = []
        while at < len(data) and not unpack.eof:
            try:
                content.append(unpack.decompress(data[at : at + _CHUNK_BYTES]))
            except zlib.error:
                return
            at += min(_CHUNK_BYTES, len(data) - at)
        if not unpack.eof:
            return
        at -= len(unpack.unused_data)
        yield b"".join(content), at


def _whole_bytes(path: Path) -> int:
    return max((end for _, end in _members(path)), default=0)


def read_dataset(paths: Sequence[Path]) -> Dataset:
    """Everything in some files, a torn last member of each left out.

    Raises: ``UserError`` for a line that is not as described above; names file and line.
    """
    out = Dataset()
    for path in paths:
        number = 0
        for content, _ in _members(path):
            for line in content.splitlines():
                number += 1
                try:
                    _read_line(out, line)
                except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
                    raise UserError(f"{path}: line {number}: {error!r}") from error
    return out


def _read_line(out: Dataset, line: bytes) -> None:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError("too long")
    item = json.loads(line)
    match item["kind"]:
        case "target":
            target = CpuTarget.from_json(item["target"])
            if target.fingerprint() != item["fingerprint"]:
                raise ValueError("a target's fingerprint does not fit")
            out.targets[item["fingerprint"]] = target
        case "workload":
            if workload_id(item["kernel"]) != item["id"]:
                raise ValueError("a workload's digest does not fit")
            if item["id"] not in out.workloads:
                out.workloads[item["id"]] = Workload(
                    family=str(item["family"]),
                    kernel=parse_program(item["kernel"]),
                    shared={str(k): tuple(map(str, v)) for k, v in item["shared"].items()},
                )
        case "sample":
            out.samples.append(_read_sample(out, item))
        case other:
            raise ValueError(f"unknown kind {other!r}")


def _read_sample(out: Dataset, item: dict[str, Any]) -> Sample:
    if item["workload"] not in out.workloads or item["target"] not in out.targets:
        raise ValueError("a sample of a workload or target that no earlier line describes")
    seconds = tuple(float(x) for x in item["seconds"])
    if not all(np.isfinite(x) and x > 0 for x in seconds):
        raise ValueError("a time is not positive")
    return Sample(
        workload=str(item["workload"]),
        target=str(item["target"]),
        threads=int(item["threads"]),
        schedule=schedule_from_json(item["schedule"]),
        seconds=seconds,
        status=str(item["status"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What a model is fitted to or judged by.

    Attributes:
        features: shape (examples, features), float32, of ``features_version``.
        target: log2 of the fraction of the roofline that was reached, shape (examples,).
        groups: number of the (workload, target, threads) of each example, int32; only within one
            are ranks compared.
        families: of each example; workloads: the id of each example's.
        roofline_ns: of each example [ns].
    """

    features: NDArray[np.float32]
    target: NDArray[np.float32]
    groups: NDArray[np.int32]
    families: tuple[str, ...]
    workloads: tuple[str, ...]
    roofline_ns: NDArray[np.float64]
    features_version: int = FEATURES_VERSION

    def __len__(self) -> int:
        return len(self.target)

    def take(self, chosen: NDArray[np.bool_]) -> Examples:
        """The examples where ``chosen``."""
        at = np.flatnonzero(chosen)
        return Examples(
            features=self.features[at],
            target=self.target[at],
            groups=self.groups[at],
            families=tuple(self.families[k] for k in at),
            workloads=tuple(self.workloads[k] for k in at),
            roofline_ns=self.roofline_ns[at],
            features_version=self.features_version,
        )


def make_examples(dataset: Dataset) -> Examples:
    """Features and targets of every sample that ran; the time is the median of its runs.

    Samples whose schedule no longer fits their kernel (an older version wrote it) are left out.
    """
    grouped: dict[tuple[str, str, int], list[Sample]] = {}
    for s in dataset.samples:
        if s.status == "ok" and s.seconds:
            grouped.setdefault((s.workload, s.target, s.threads), []).append(s)
    facts = {key: kernel_facts(w.kernel) for key, w in dataset.workloads.items()}
    rows: list[NDArray[np.float32]] = []
    columns: list[tuple[float, int, str, str, float]] = []
    for number, ((key, target, threads), samples) in enumerate(grouped.items()):
        workload = dataset.workloads[key]
        extractor = KernelFeatures(
            workload.kernel, dataset.targets[target], threads, facts=facts[key]
        )
        least = extractor.roofline.ns
        for s in samples:
            try:
                rows.append(extractor.extract(s.schedule))
            except UserError:
                continue
            fraction = np.log2(least / (float(np.median(s.seconds)) * 1e9))
            columns.append((float(fraction), number, workload.family, key, least))
    return Examples(
        features=np.array(rows, dtype=np.float32).reshape(len(rows), len(FEATURES)),
        target=np.array([c[0] for c in columns], dtype=np.float32),
        groups=np.array([c[1] for c in columns], dtype=np.int32),
        families=tuple(c[2] for c in columns),
        workloads=tuple(c[3] for c in columns),
        roofline_ns=np.array([c[4] for c in columns], dtype=np.float64),
    )
