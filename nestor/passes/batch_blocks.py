"""A model on a large batch as the same model on blocks of its images.

Where no statement mixes images, a Program for ``B`` images is a Program for ``b`` of them, run
``B / b`` times on parts of the inputs and outputs. Threads take blocks by themselves, from the
first kernel to the last: they meet once a call, what a kernel leaves in a core's cache the next one
finds there, and temps take ``b`` images a thread instead of ``B``. Each block reads all weights
again, which is what decides.

That images do not mix is shown by translation: a statement has an index ``m`` that takes ``c``
values an image; ``m + c`` instead of ``m`` moves every access of what holds images on by exactly
one image and leaves every other index, predicate and access as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from nestor.ir.affine import Affine, Interval, affine, variable
from nestor.ir.expr import Expr, Index, IndexExpr, Load, walk
from nestor.ir.program import Program, Statement, Tensor
from nestor.passes.knobs import Choices
from nestor.passes.rewriting import (
    index_ranges,
    is_sequential,
    map_statement_affines,
)

_GOOD_REUSE = 75
"""Multiply-adds an element of the weights in a block: products then run as fast as on any batch."""
_LEAST_REUSE = 64
"""Multiply-adds an element of the weights in a block below which reading weights takes the time."""
_LEAST_LAYERS = 4
"""Products in a row from which it pays to keep what is between them in a core's cache."""


@dataclass(frozen=True, slots=True)
class Batched:
    """Where a tensor holds its images: ``per_image`` positions of dimension ``axis`` for each."""

    axis: int
    per_image: int


@dataclass(frozen=True, slots=True)
class BatchUse:
    """How a Program treats its batch.

    Attributes:
        batch: number of images.
        tensors: those that hold images; the others are the same for all.
        indices: of each statement that computes images, the index that runs through them.
    """

    batch: int
    tensors: Mapping[str, Batched]
    indices: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BlockedProgram:
    """A Program to run ``blocks`` times, on the next part of the tensors ``in_blocks`` each."""

    program: Program
    blocks: int = 1
    in_blocks: frozenset[str] = frozenset()


def split_batch(program: Program, cores: int, choices: Choices | None = None) -> BlockedProgram:
    """``program`` in blocks of its batch, for so many cores, where that should pay.

    Knob: ``images``, how many a block has; 0: no blocks.
    The number of threads that a call uses is not asked for: results do not depend on it.
    """
    use = find_batch(program)
    if use is None:
        return BlockedProgram(program)
    default = choose_images(program, use, cores) or 0
    values = (0, *_fitting_images(use, cores))
    images = (choices or Choices()).size("images", values, default, "images of a block; 0: all")
    if not images:
        return BlockedProgram(program)
    outside = (t.name for t in program.by_role("input", "output"))
    return BlockedProgram(
        take_blocks(program, use, images),
        use.batch // images,
        frozenset(n for n in outside if n in use.tensors),
    )


def choose_images(program: Program, use: BatchUse, cores: int) -> int | None:
    """Images of a block: the fewest for which weights, read once a block, are used often enough.

    None where blocks would not keep all cores busy, or would read weights for too little work,
    or where there is no depth: few products in a row leave little in the caches for each other.
    """
    layers, reuse = _weight_reuse(program, use)
    fitting = _fitting_images(use, cores)
    if layers < _LEAST_LAYERS or not fitting or reuse * fitting[-1] < _LEAST_REUSE:
        return None
    return next((n for n in fitting if reuse * n >= _GOOD_REUSE), fitting[-1])


def _fitting_images(use: BatchUse, cores: int) -> list[int]:
    """Images of a block that divide the batch into as many blocks for each core."""
    return [
        images
        for images in range(1, use.batch // max(2, cores) + 1)
        if use.batch % images == 0 and use.batch // images % cores == 0
    ]


def _weight_reuse(program: Program, use: BatchUse) -> tuple[int, float]:
    """How many statements sum products with weights, and how often an image uses each weight."""
    computed = {t.name for t in program.by_role("input")}
    sizes = {t.name: prod(e.const for e in t.shape) for t in program.tensors}
    layers, work, elements = 0, 0, 0
    for statement in program.statements:
        assert isinstance(statement, Statement)
        read = {n.tensor for e in statement.expressions() for n in _loads(e)}
        if read & computed:
            computed |= {w.tensor for w in statement.writes}
        weights = read - computed
        if statement.reduction is None or statement.name not in use.indices or not weights:
            continue
        layers += 1
        work += prod((r.upper - r.lower).const for r in statement.domain.ranges)
        elements += max(sizes[n] for n in weights)
    return layers, work / use.batch / elements if elements else 0.0


def find_batch(program: Program) -> BatchUse | None:
    """The leading dimension of the inputs, if every statement treats its positions alike.

    None if there is no such dimension of at least 2, if some statement mixes its positions (sums
    over a batch, say) or cannot be seen through, or if there is a state: it is updated once a call.
    None for recurrences too: each step reads the weights, for as many images at once as there are.
    """
    batch = _leading_extent(program)
    if batch is None or program.by_role("state", "inout"):
        return None
    tensors = {t.name: t for t in program.tensors}
    found: dict[str, Batched] = {
        t.name: Batched(0, 1)
        for t in program.by_role("input")
        if t.shape and t.shape[0] == affine(batch)
    }
    indices: dict[str, str] = {}
    for statement in program.statements:
        if not isinstance(statement, Statement) or is_sequential(statement):
            return None
        match = _match(statement, batch, tensors, found)
        if match is None:
            return None
        index, writes = match
        if index is not None:
            indices[statement.name] = index
            found |= writes
    # What was taken for the same in all images, before another statement wrote images to it?
    for statement in program.statements:
        assert isinstance(statement, Statement)
        if not _still_holds(statement, indices.get(statement.name), batch, tensors, found):
            return None
    for tensor in program.tensors:
        if tensor.alias_of is not None and (tensor.name in found or tensor.alias_of in found):
            return None
    if any(found.get(t.name, Batched(1, 1)).axis for t in program.by_role("output")):
        return None  # parts of it would not be in one piece
    return BatchUse(batch, found, indices)


def take_blocks(program: Program, use: BatchUse, images: int) -> Program:
    """``program`` for the first ``images`` of its batch."""

    def tensor(old: Tensor) -> Tensor:
        batched = use.tensors.get(old.name)
        if batched is None:
            return old
        shape = list(old.shape)
        shape[batched.axis] = affine(batched.per_image * images)
        return replace(old, shape=tuple(shape))

    return replace(
        program,
        tensors=tuple(tensor(t) for t in program.tensors),
        statements=tuple(
            _shorten(s, use, images) if isinstance(s, Statement) else s for s in program.statements
        ),
    )


def _shorten(statement: Statement, use: BatchUse, images: int) -> Statement:
    """The statement for the first images; an index that has one value left goes."""
    index = use.indices.get(statement.name)
    if index is None:
        return statement
    extent = statement.domain.range_of(index).upper.const // use.batch * images
    ranges = tuple(
        replace(r, upper=affine(extent)) if r.name == index else r for r in statement.domain.ranges
    )
    if extent != 1:
        return replace(statement, domain=replace(statement.domain, ranges=ranges))
    kept = tuple(r for r in ranges if r.name != index)
    only = map_statement_affines(statement, lambda a: a.substitute({index: 0}))
    reduction = only.reduction
    if reduction is not None and reduction.state_indices is not None:
        states = tuple(
            None if s is None else tuple(n for n in s if n != index)
            for s in reduction.state_indices
        )
        reduction = replace(reduction, state_indices=states)
    return replace(only, domain=replace(only.domain, ranges=kept), reduction=reduction)


def _leading_extent(program: Program) -> int | None:
    """The largest leading dimension that an input has and at least half of the inputs share."""
    leading = [
        t.shape[0].const for t in program.by_role("input") if t.shape and t.shape[0].is_const
    ]
    if not leading:
        return None
    batch = max(leading, key=lambda n: (leading.count(n), n))
    return batch if batch > 1 and not program.symbols else None


def _match(
    statement: Statement, batch: int, tensors: Mapping[str, Tensor], found: Mapping[str, Batched]
) -> tuple[str | None, dict[str, Batched]] | None:
    """The index that runs through the images, and what the statement writes; None if it mixes.

    The index is None for a statement that has nothing to do with them.
    """
    touches_images = any(n in found for n in _touched(statement))
    for index in _candidates(statement, batch):
        writes = _Shift(statement, index, batch, found).writes(tensors)
        if writes is None:
            continue
        if touches_images or all(b.per_image == 1 for b in writes.values()):
            return index, writes
    return None if touches_images else (None, {})


def _still_holds(
    statement: Statement,
    index: str | None,
    batch: int,
    tensors: Mapping[str, Tensor],
    found: Mapping[str, Batched],
) -> bool:
    """Whether ``_match`` would say the same now that all tensors with images are known."""
    if index is None:
        return not any(n in found for n in _touched(statement))
    return _Shift(statement, index, batch, found).writes(tensors) is not None


def _touched(statement: Statement) -> set[str]:
    """Every tensor that a statement reads or writes."""
    loaded = {n.tensor for e in statement.expressions() for n in _loads(e)}
    return loaded | {w.tensor for w in statement.writes}


def _candidates(statement: Statement, batch: int) -> Iterator[str]:
    """Indices that may run through the images: boxes of their own, not reduced."""
    reduced = () if statement.reduction is None else statement.reduction.indices
    bounds = [a for r in statement.domain.ranges for a in (r.lower, r.upper)]
    used = {n for a in (*bounds, *statement.domain.constraints) for n in a.variables()}
    for r in statement.domain.ranges:
        extent = r.upper.const if r.lower == affine(0) and r.upper.is_const else 0
        is_box = extent > 0 and extent % batch == 0
        if is_box and r.name not in used and r.name not in reduced:
            yield r.name


class _Shift:
    """What happens to a statement's accesses when index ``index`` moves on by one image."""

    def __init__(self, statement: Statement, index: str, batch: int, found: Mapping[str, Batched]):
        self.statement = statement
        self.batch = batch
        self.found = found
        self.ranges: dict[str, Interval] = index_ranges(statement.domain, {})
        images = statement.domain.range_of(index).upper.const // batch
        self.first = {**self.ranges, index: (0, images - 1)}
        self.moved = {index: variable(index) + images}

    def writes(self, tensors: Mapping[str, Tensor]) -> dict[str, Batched] | None:
        """Where the written tensors hold their images; None if some access is not as it should."""
        if not all(self._is_kept(e) for e in self.statement.expressions()):
            return None
        out: dict[str, Batched] = {}
        for write in self.statement.writes:
            tensor = tensors[write.tensor]
            batched = self.found.get(write.tensor) or self._axis(write.indices, tensor)
            if batched is None or not self._moves(write.indices, batched):
                return None
            if tensor.role not in ("temp", "output"):
                return None
            out[write.tensor] = batched
        return out

    def _step(self, index: Affine) -> Affine:
        return (index.substitute(self.moved) - index).simplify(self.ranges)

    def _is_kept(self, expression: Expr) -> bool:
        """Whether all that an expression reads moves with the images or stays."""
        for node in walk(expression):
            if isinstance(node, Index) and self._step(node.value) != affine(0):
                return False
            if isinstance(node, Load):
                if any(self._step(p) != affine(0) for p in node.predicate):
                    return False
                if not self._moves(node.indices, self.found.get(node.tensor)):
                    return False
        return True

    def _moves(self, indices: tuple[IndexExpr, ...], batched: Batched | None) -> bool:
        """One image on along the batched axis, from the first image at the first; else not at all.

        An index that is an expression is walked with the expression that holds it.
        """
        for axis, index in enumerate(indices):
            on_axis = batched is not None and axis == batched.axis
            if not isinstance(index, Affine):
                if on_axis:
                    return False
                continue
            step = batched.per_image if batched is not None and on_axis else 0
            if self._step(index) != affine(step):
                return False
            low, high = index.simplify(self.first).bounds(self.first)
            if on_axis and (low is None or high is None or low < 0 or high >= step):
                return False
        return True

    def _axis(self, indices: tuple[IndexExpr, ...], tensor: Tensor) -> Batched | None:
        """The axis of a written tensor that moves, if it holds all images in order."""
        for axis, (index, extent) in enumerate(zip(indices, tensor.shape)):
            if isinstance(index, Affine) and extent.is_const and extent.const % self.batch == 0:
                per_image = extent.const // self.batch
                if self._step(index) == affine(per_image):
                    return Batched(axis, per_image)
        return None


def _loads(expression: Expr) -> Iterator[Load]:
    return (n for n in walk(expression) if isinstance(n, Load))
