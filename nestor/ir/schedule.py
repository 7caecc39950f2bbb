"""Schedule steps: what may be done to a kernel's loops, as data.

Loops are addressed by stable names. Index ``i`` of statement ``S`` starts as loop ``S.i``; tiling
loop ``L`` makes ``L.o`` (outer) and ``L.i`` (inner). A fused loop keeps the first one's name.
``passes.nest.apply_schedule`` gives the steps their meaning; the polyhedral checker judges the nest
that results, not the steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Union

from nestor.errors import IRError
from nestor.ir.schedule_tree import Tree, tree_from_json, tree_to_json

LATER = {"later": True}
"""Of fields that a step got after schedules with it were kept: their defaults are not written, so
that what was written before stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Split a loop: ``for i < N`` → ``for i.o < ⌈N/size⌉: for i.i < size`` (a tail keeps N)."""

    loop: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PredicatedTile:
    """Split a loop into tiles of one size: ``for i < N`` → ``for i.o < ⌈N/size⌉: for i.i < size``,
    and nothing is done in the last tile past N. (``Tile`` makes that tile a smaller one.)"""

    loop: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse:
    """Make one loop of two, the second directly inside the first and of a constant extent:
    ``for i < N: for j < M`` → ``for c < N·M`` with ``i = c // M`` and ``j = c % M``.

    ``S.i`` and ``S.j`` become ``S.i_j``.
    """

    outer: str
    inner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder:
    """Give a statement's loops a new order, outermost first; names all of its loops."""

    statement: str
    loops: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuse:
    """Run two statements in one loop: ``for i: A; for j: B`` → ``for i: A; B``.

    ``first`` and ``second`` have the same extent, and all loops around them are shared already.
    """

    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Run a loop's iterations on threads. Legal when it carries no dependence."""

    loop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """Run each iteration of a loop as a program of a GPU's grid. Legal when it carries no
    dependence."""

    loop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Warps:
    """Run each program of a GPU's grid on ``count`` warps, with the loads of ``stages`` iterations
    of a loop under way at once. Of the two innermost loops of the grid, ``group`` iterations of the
    first start together, for the caches' sake. ``persistent`` programs a processor take one
    iteration of the grid after the other; 0: each has a program of its own. With ``descriptors``
    boxes of tensors are copied as such for products; with ``specialize`` some warps copy and others
    multiply. With ``skip`` a softmax leaves out tiles of scores that are all −∞. Changes no loop.
    """

    count: int
    stages: int
    group: int = 1
    persistent: int = field(default=0, metadata=LATER)
    descriptors: int = field(default=0, metadata=LATER)
    specialize: int = field(default=0, metadata=LATER)
    skip: int = field(default=0, metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectorize:
    """Run a constant-extent loop in the lanes of a vector. Legal when it carries no dependence."""

    loop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unroll:
    """Replicate a constant-extent loop's body."""

    loop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulate:
    """Keep a reduction's state in ``scope`` while its reduced loops run."""

    statement: str
    scope: Literal["register", "local"] = "register"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeAt:
    """Keep a kernel temp in a buffer of ``scope`` at the innermost loop its users share."""

    tensor: str
    scope: Literal["register", "local"] = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReduction:
    """Reduce into ``lanes`` partial states: ``for k: s += x[k]`` →
    ``for k.o: for k.i < lanes: p[k.i] += x[…]``, then ``for k.i: s += p[k.i]``.

    ``loop`` is a reduced loop; it is tiled by ``lanes``. Legal when the monoid commutes.
    """

    loop: str
    lanes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReduction:
    """Sum each iteration of a reduced loop apart: ``for k.o: for k.i: s += x[…]`` →
    ``for k.o: p = 0; for k.i: p += x[…]; s += p``.

    Rounding errors then grow with the blocks, not with the terms. ``loop`` is a reduced loop with
    further reduced loops inside. Legal when the monoid is associative, as all are.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, 4.2.
    """

    loop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Store a parameter in a blocked layout: dimension ``dims[p]`` in blocks of ``blocks[p]``.

    Physical order: the whole dimensions (blocked ones divided by their block) in the order
    ``order``, then the blocks in the order of ``dims``.
    """

    tensor: str
    order: tuple[int, ...]
    dims: tuple[int, ...]
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrange:
    """Run the kernel's statements in the order of a schedule tree, which replaces their own order.

    Its loops then have the tree's names. The first step of a schedule, if at all.
    """

    tree: Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Interchange:
    """Give loops of one perfect nest a new order, outermost first: ``for i: for j`` →
    ``for j: for i``. Names the loops that change places; others between them keep theirs."""

    loops: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """Add ``factor`` times the loop ``by`` to ``loop``, for all statements of both:
    ``(t, i)`` → ``(t, i + factor*t)``."""

    loop: str
    by: str
    factor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Run ``statement`` ``amount`` iterations of ``loop`` later, against the others in it."""

    loop: str
    statement: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reverse:
    """Run a loop backwards."""

    loop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribute:
    """``for i: A; B; C`` → ``for i: A``, ``for i: B; C``: split ``loop`` before ``statement``.

    The second loop is called ``NAME.2`` (``NAME.3`` if that exists, and so on).
    """

    loop: str
    statement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Keep the elements of ``tensor`` that one iteration of the loops around ``loop`` touches in
    ``scope`` while ``loop`` runs: loaded before it, stored after it if they were changed."""

    tensor: str
    loop: str
    scope: Literal["register", "local"] = "register"


Step = Union[
    Arrange,
    Interchange,
    Skew,
    Shift,
    Reverse,
    Distribute,
    Promote,
    Tile,
    PredicatedTile,
    Collapse,
    Reorder,
    Fuse,
    Parallel,
    Bind,
    Warps,
    Vectorize,
    Unroll,
    Accumulate,
    ComputeAt,
    SplitReduction,
    BlockReduction,
    Pack,
]
STEPS: dict[str, type] = {
    c.__name__: c
    for c in (
        Arrange, Interchange, Skew, Shift, Reverse, Distribute, Promote,
        Tile, PredicatedTile, Collapse, Reorder, Fuse, Parallel, Bind, Warps, Vectorize, Unroll,
        Accumulate, ComputeAt,
        SplitReduction, BlockReduction, Pack,
    )
}  # fmt: skip

Schedule = tuple[Step, ...]


def schedule_to_json(schedule: Schedule) -> list[dict[str, Any]]:
    """Steps as JSON objects ``{"step": "Tile", "loop": "S.i", "size": 8}``."""
    return [
        {"step": "Arrange", "tree": tree_to_json(step.tree)}
        if isinstance(step, Arrange)
        else {"step": type(step).__name__, **_written_fields(step)}
        for step in schedule
    ]


def _written_fields(step: Step) -> dict[str, Any]:
    later = {f.name: f.default for f in fields(step) if LATER.items() <= f.metadata.items()}
    return {k: v for k, v in asdict(step).items() if k not in later or v != later[k]}


def schedule_from_json(data: list[dict[str, Any]]) -> Schedule:
    """Inverse of ``schedule_to_json``. Raises: ``IRError`` for an unknown step or field."""
    out: list[Step] = []
    for position, item in enumerate(data):
        cls = STEPS.get(str(item.get("step")))
        if cls is None:
            raise IRError(f"schedule step {position}: no step is called {item.get('step')!r}")
        names = {f.name for f in fields(cls)}
        given = {k: v for k, v in item.items() if k != "step"}
        if set(given) - names:
            raise IRError(f"schedule step {position}: {cls.__name__} has no {set(given) - names}")
        if cls is Arrange and "tree" in given:
            given["tree"] = tree_from_json(given["tree"])
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        out.append(cls(**values))
    return tuple(out)


def format_schedule(schedule: Schedule) -> str:
    """One step a line, as Python: ``Tile(loop='S.i', size=8)``."""
    return "\n".join(repr(step) for step in schedule)
