"""What the database holds, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nestor.autotune.records.record import KernelKey


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSummary:
    """A kernel and how much is known of it.

    Attributes: records: of any status. best_ratio: least of any target and thread count, None
        without a measured one. last_ns: time of the newest [ns since 1970].
    """

    kernel: KernelKey
    records: int
    measured: int
    best_ratio: float | None
    last_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the database holds.

    Attributes: place: path or URL without a password. statuses: records by status.
        size_bytes: of the database; None where it cannot be told.
    """

    place: str
    usable: bool
    kernels: int = 0
    targets: int = 0
    records: int = 0
    statuses: Mapping[str, int]
    generators: Mapping[str, int]
    oldest_ns: int | None = None
    newest_ns: int | None = None
    size_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
