"""Time one operator by its peers in turns and hold the answers and the times against limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import CaseResult, median_seconds, run_loader
from benchmarks.ops import registry
from benchmarks.ops.case import OpCase
from benchmarks.roofline import Machine
from nestor.benchmarking.turns import Gauge, PeerResult, Progress, Spread, Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of one operator.

    Attributes:
        case: which.
        shapes: of its inputs.
        result: timings and verdicts.
        moved_bytes: least bytes read and written [bytes].
        machine: its peaks, that times are held against; None if they are not known.
    """

    case: OpCase
    shapes: tuple[tuple[int, ...], ...]
    result: CaseResult
    moved_bytes: int
    machine: Machine | None

    @property
    def limit_seconds(self) -> float | None:
        """The least time on this machine [s]; None if its peaks are not known."""
        if self.machine is None:
            return None
        return self.machine.floor_seconds(self.case.operations, self.moved_bytes)

    @property
    def limit_by(self) -> str:
        """``compute`` or ``memory``: which of the peaks the limit comes from; empty if unknown."""
        if self.machine is None:
            return ""
        compute = self.case.operations / self.machine.flops
        return "compute" if compute >= self.moved_bytes / self.machine.bandwidth else "memory"

    @property
    def own(self) -> PeerResult | None:
        """Nestor's result, if it took part."""
        return self.result.own

    @property
    def best(self) -> PeerResult | None:
        """The fastest of the other peers, if any took part."""
        return self.result.best

    @property
    def versus_best(self) -> Spread | None:
        """The best peer's turn over Nestor's of the same round: above 1, Nestor is faster."""
        return self.result.versus_best

    def share_of_limit(self, peer: PeerResult) -> float | None:
        """The least time over the peer's: 1 is all that the machine can do."""
        limit = self.limit_seconds
        return limit / median_seconds(peer) if limit is not None else None

    def flops(self, peer: PeerResult) -> float:
        """Operations a second [1/s]."""
        return self.case.operations / median_seconds(peer)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        best, ratio = self.best, self.versus_best
        working = [p for p in self.result.peers if not p.failure and p.turns_ns]
        return {
            "op": self.case.name,
            "group": self.case.group,
            "shapes": [list(s) for s in self.shapes],
            "operations": self.case.operations,
            "moved_bytes": self.moved_bytes,
            "limit_seconds": self.limit_seconds,
            "limit_by": self.limit_by,
            "best": best.name if best else None,
            "versus_best": ratio.to_dict() if ratio else None,
            "externs": self.own.externs if self.own else None,
            "flops": {p.name: self.flops(p) for p in working},
            "share_of_limit": {p.name: self.share_of_limit(p) for p in working},
            **self.result.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], machine: Machine | None) -> Measured:
        """From ``to_dict``'s data, held against ``machine``'s peaks.

        Raises: KeyError when there is no such operator any more.
        """
        return cls(
            case=registry.OPS[data["op"]],
            shapes=tuple(tuple(s) for s in data["shapes"]),
            result=CaseResult.from_dict(data),
            moved_bytes=data["moved_bytes"],
            machine=machine,
        )


def measure(
    case: OpCase,
    peers: Sequence[str],
    machine: Machine | None,
    *,
    gauge: Gauge | None,
    seed: int,
    threads: int,
    timing: Timing,
    progress: Progress | None = None,
) -> Measured:
    """Time ``case`` by ``peers`` in turns and judge each answer.

    Args: machine: the peaks for ``threads`` threads, to hold the times against; gauge: as of
        ``nestor.benchmarking.turns.compare``.
    """
    result = run_loader(
        case.name,
        "benchmarks.ops.registry:load",
        {"name": case.name, "seed": seed},
        peers,
        threads=threads,
        timing=timing,
        gauge=gauge,
        progress=progress,
        inputs_loader="benchmarks.ops.registry:load_inputs",
    )
    module, inputs = registry.load(case.name, seed)
    outputs = next((p.outputs for p in result.peers if p.outputs), [])
    for peer in result.peers:
        # Judged already; of operators beyond the caches they would fill the memory.
        peer.outputs, peer.others = ([], []) if peer.outputs is not outputs else (outputs, [])
    moved = case.moved_bytes(module, inputs, outputs)
    for peer in result.peers:
        peer.outputs = []
    return Measured(
        case=case,
        shapes=tuple(tuple(x.shape) for x in inputs),
        result=result,
        moved_bytes=moved,
        machine=machine,
    )
