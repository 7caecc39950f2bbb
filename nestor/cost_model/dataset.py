"""Measured schedules, and the matrices that a model is fitted to or judged by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nestor.cost_model.features import FEATURES, FEATURES_VERSION, KernelFeatures
from nestor.cost_model.kernel_facts import kernel_facts
from nestor.errors import UserError
from nestor.ir.printer import print_program
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.target.cpu import CpuTarget

_NOMINAL_GHZ = 3.0
_NOMINAL_GBPS_PER_CORE = 12.0
_NOMINAL_GBPS_MOST = 200.0


def nominal_target(target: CpuTarget) -> CpuTarget:
    """``target`` at a nominal clock and bandwidth.

    What records know of a machine has no speeds (``CpuTarget.tuning_facts``), so fractions of the
    roofline are those of one at nominal speeds wherever a model is trained or asked.
    """
    bandwidth = min(_NOMINAL_GBPS_PER_CORE * target.cores, _NOMINAL_GBPS_MOST)
    return replace(target, ghz=_NOMINAL_GHZ, memory_gbps=bandwidth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A kernel that was measured, and of which family (``gemm``, ``softmax``, …)."""

    family: str
    kernel: Program

    @property
    def id(self) -> str:
        """Digest of the kernel's text [hex]."""
        return hashlib.sha256(print_program(self.kernel).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One schedule of one workload, measured.

    Attributes: workload: its id. target: fingerprint. seconds: of a run [s].
    """

    workload: str
    target: str
    threads: int
    schedule: Schedule
    seconds: float


@dataclass(slots=True)
class Dataset:
    """Kernels, machines, and what was measured of the ones on the others."""

    targets: dict[str, CpuTarget] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def add(self, workload: Workload, target: CpuTarget) -> tuple[str, str]:
        """Enter a workload and a target; returns what samples name them by."""
        self.targets[target.fingerprint()] = target
        key = workload.id
        self.workloads.setdefault(key, workload)
        return key, target.fingerprint()


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
    """Features and targets of every sample.

    Samples whose schedule no longer fits their kernel (an older version wrote it) are left out.
    """
    grouped: dict[tuple[str, str, int], list[Sample]] = {}
    for s in dataset.samples:
        grouped.setdefault((s.workload, s.target, s.threads), []).append(s)
    facts = {key: kernel_facts(w.kernel) for key, w in dataset.workloads.items()}
    rows: list[NDArray[np.float32]] = []
    columns: list[tuple[float, int, str, str, float]] = []
    for number, ((key, target, threads), samples) in enumerate(grouped.items()):
        workload = dataset.workloads[key]
        extractor = KernelFeatures(
            workload.kernel, nominal_target(dataset.targets[target]), threads, facts=facts[key]
        )
        least = extractor.roofline.ns
        for s in samples:
            try:
                rows.append(extractor.extract(s.schedule))
            except UserError:
                continue
            fraction = np.log2(least / (s.seconds * 1e9))
            columns.append((float(fraction), number, workload.family, key, least))
    return Examples(
        features=np.array(rows, dtype=np.float32).reshape(len(rows), len(FEATURES)),
        target=np.array([c[0] for c in columns], dtype=np.float32),
        groups=np.array([c[1] for c in columns], dtype=np.int32),
        families=tuple(c[2] for c in columns),
        workloads=tuple(c[3] for c in columns),
        roofline_ns=np.array([c[4] for c in columns], dtype=np.float64),
    )
