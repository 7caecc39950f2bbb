"""What the polyhedral analysis tells heuristics about an affine kernel, as plain data.

Made by ``passes.polyhedral.dependence_analysis`` and ``proposals``, often in a helper process;
nothing here touches isl. Everything goes through JSON unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nestor.ir.schedule_tree import Tree, tree_from_json, tree_to_json

DependenceKind = Literal["flow", "anti", "output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """Two instances that depend on each other, for certain sizes."""

    symbols: tuple[tuple[str, int], ...]
    source: tuple[tuple[str, int], ...]
    target: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependence:
    """``target``'s instances must run after those of ``source`` that touch the same element.

    Attributes:
        source, target: statements.
        tensor: what both touch (the source's name for it, if they are aliases).
        kind: write → read, read → write, write → write.
        loops: names (source's, target's) of the loops that both share in the Program's order.
        directions: of target minus source, for each shared loop: one of ``= < <= > >= != *``,
            where ``<`` means that the target is in a later iteration.
        distances: the same difference where it is one constant, else None.
        exact: the accesses are affine; otherwise any two instances are taken to meet.
        is_reduction: updates of one accumulator, which may run in any order.
        is_value_based: only the last write before each read counts.
        witness: two such instances.
    """

    source: str
    target: str
    tensor: str
    kind: DependenceKind
    loops: tuple[tuple[str, str], ...]
    directions: tuple[str, ...]
    distances: tuple[int | None, ...]
    exact: bool
    is_reduction: bool = False
    is_value_based: bool = False
    witness: Witness | None = None

    def __str__(self) -> str:
        parts = [
            f"{name}: {direction if distance is None else distance}"
            for (name, _), direction, distance in zip(self.loops, self.directions, self.distances)
        ]
        shared = f" ({', '.join(parts)})" if parts else ""
        note = ", reduction" if self.is_reduction else ""
        return f"{self.kind} {self.source} → {self.target} on {self.tensor}{shared}{note}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionVector:
    """Signs (−1, 0, 1) of a dependence's distances in the loops of one band.

    ``dependence`` counts in the analysis' list, ``source`` and ``target`` are its statements.
    Instances are equal in all loops around the band.
    """

    signs: tuple[int, ...]
    dependence: int
    source: str = ""
    target: str = ""
    is_reduction: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BandFacts:
    """Dependences among the loops of one band of a tree that the loops around do not carry.

    The questions take loops in the order in which they are to stand. Dependences that may be
    reordered (``is_reduction``) limit parallel and vector loops, not the order.
    Source: Wolf, Lam, A Loop Transformation Theory and an Algorithm to Maximize Parallelism, 1991.
    """

    loops: tuple[str, ...]
    vectors: tuple[DirectionVector, ...]

    def can_order(self, loops: Sequence[str]) -> bool:
        """Every dependence still goes forward when the band's loops stand in this order."""
        at = [self.loops.index(name) for name in loops]
        return all(
            next((v.signs[k] for k in at if v.signs[k]), 0) >= 0
            for v in self.vectors
            if not v.is_reduction
        )

    def is_permutable(self, loops: Iterable[str] | None = None) -> bool:
        """No dependence goes backward in any of ``loops``, so that they may be tiled."""
        at = [self.loops.index(name) for name in (self.loops if loops is None else loops)]
        return all(v.signs[k] >= 0 for v in self.vectors if not v.is_reduction for k in at)

    def is_coincident(self, loop: str) -> bool:
        """No dependence crosses iterations of ``loop`` within the band: parallel wherever it is."""
        at = self.loops.index(loop)
        return all(v.signs[at] == 0 for v in self.vectors)

    def carried(self, loop: str, outside: Iterable[str]) -> list[DirectionVector]:
        """What crosses iterations of ``loop`` when the loops ``outside`` stand around it."""
        at = self.loops.index(loop)
        around = [self.loops.index(name) for name in outside]
        return [v for v in self.vectors if v.signs[at] and not any(v.signs[k] for k in around)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An order of a kernel's instances, and how it was found.

    Attributes:
        tree: the order.
        origin: ``original``, ``serialize-sccs``, ``max-fusion``, ``outer-coincidence``, …
        bands: facts of each band of the tree, outer ones first.
        is_legal: every dependence that was found is kept.
        seconds: time that it took [s].
    """

    tree: Tree
    origin: str
    bands: tuple[BandFacts, ...] = ()
    is_legal: bool = True
    seconds: float = 0.0

    def band_of(self, loop: str) -> BandFacts:
        """The band that ``loop`` belongs to; KeyError if there is none."""
        for band in self.bands:
            if loop in band.loops:
                return band
        raise KeyError(loop)

    @property
    def coincident(self) -> frozenset[str]:
        """Loops that no dependence crosses within their band."""
        return frozenset(n for b in self.bands for n in b.loops if b.is_coincident(n))


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineFacts:
    """All that was found out about one kernel within the limit.

    ``unfinished``: what was given up, with the reason, e.g. ``max-fusion: the limit of 3 s``.
    """

    dependences: tuple[Dependence, ...]
    proposals: tuple[Proposal, ...]
    unfinished: tuple[str, ...] = field(default=())


def dependence_to_json(d: Dependence) -> dict[str, Any]:
    """A JSON object with one entry a field."""
    w = d.witness
    return {
        "source": d.source,
        "target": d.target,
        "tensor": d.tensor,
        "kind": d.kind,
        "loops": [list(pair) for pair in d.loops],
        "directions": list(d.directions),
        "distances": list(d.distances),
        "exact": d.exact,
        "is_reduction": d.is_reduction,
        "is_value_based": d.is_value_based,
        "witness": None
        if w is None
        else {"symbols": dict(w.symbols), "source": dict(w.source), "target": dict(w.target)},
    }


def dependence_from_json(data: dict[str, Any]) -> Dependence:
    """Inverse of ``dependence_to_json``."""
    w = data["witness"]
    witness = None
    if w is not None:
        witness = Witness(**{key: tuple(w[key].items()) for key in ("symbols", "source", "target")})
    lists = {key: tuple(data[key]) for key in ("directions", "distances")}
    pairs = tuple((a, b) for a, b in data["loops"])
    return Dependence(**{**data, **lists, "loops": pairs, "witness": witness})


def proposal_to_json(p: Proposal) -> dict[str, Any]:
    """A JSON object with one entry a field."""
    return {
        "tree": tree_to_json(p.tree),
        "origin": p.origin,
        "is_legal": p.is_legal,
        "seconds": p.seconds,
        "bands": [
            {
                "loops": list(b.loops),
                "vectors": [
                    [list(v.signs), v.dependence, v.source, v.target, v.is_reduction]
                    for v in b.vectors
                ],
            }
            for b in p.bands
        ],
    }


def proposal_from_json(data: dict[str, Any]) -> Proposal:
    """Inverse of ``proposal_to_json``. Raises: ``IRError`` where the tree is none."""
    bands = tuple(
        BandFacts(
            loops=tuple(b["loops"]),
            vectors=tuple(
                DirectionVector(
                    signs=tuple(signs),
                    dependence=at,
                    source=source,
                    target=target,
                    is_reduction=is_reduction,
                )
                for signs, at, source, target, is_reduction in b["vectors"]
            ),
        )
        for b in data["bands"]
    )
    return Proposal(
        tree=tree_from_json(data["tree"]),
        origin=data["origin"],
        bands=bands,
        is_legal=data["is_legal"],
        seconds=data["seconds"],
    )
