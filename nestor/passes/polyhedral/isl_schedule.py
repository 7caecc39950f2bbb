"""isl's schedules as schedule trees, and the search for them.

Source: Verdoolaege, Janssens, Scheduling for PPCG, CW 706, 2017 (the scheduler and its options).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import islpy as isl

from nestor.errors import LegalityUnknown
from nestor.ir.affine import Affine, affine_sum, floor_div, variable
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence, Tree
from nestor.passes.polyhedral.dependence_analysis import DependenceAnalysis, StatementModel
from nestor.passes.polyhedral.isl_util import IN, PARAM, context
from nestor.passes.polyhedral.order_tree import loop_names, normalize

_NODE: Any = isl.schedule_node_type

OPTIONS = (
    "serialize_sccs", "whole_component", "maximize_band_depth", "outer_coincidence",
    "maximize_coincidence",
)  # fmt: skip


def compute_tree(analysis: DependenceAnalysis, options: Mapping[str, int]) -> Tree:
    """The order that isl's scheduler finds with ``options`` (those of ``OPTIONS``; others are 0).

    The option ``share_reads`` is ours: reads of one element are to run close together too.
    Raises: ``LegalityUnknown`` if isl gives up or its answer has no form as a tree.
    """
    for name in OPTIONS:
        getattr(context(), f"set_schedule_{name}")(options.get(name, 0))
    constraints = isl.ScheduleConstraints.on_domain(_instances(analysis))
    constraints = constraints.set_validity(analysis.validity())
    constraints = constraints.set_coincidence(analysis.coincidence())
    proximity = analysis.proximity()
    if options.get("share_reads"):
        proximity = proximity.union(analysis.shared_reads())
    constraints = constraints.set_proximity(proximity)
    try:
        root = constraints.compute_schedule().get_root()
        return tree_of(analysis, root)
    except isl.Error as error:
        raise LegalityUnknown(f"isl found no schedule: {error}") from None


def _instances(analysis: DependenceAnalysis) -> Any:
    """All instances, of those statements that have some."""
    domain = analysis.domain()
    for model in analysis.statements.values():
        instances = model.instances()
        if instances.is_empty():
            domain = domain.subtract(isl.UnionSet.from_set(isl.Set.universe(instances.get_space())))
    return domain


def tree_of(analysis: DependenceAnalysis, root: Any) -> Tree:
    """An isl schedule, from its domain node down, as a tree with readable loop names."""
    models = {m.tuple_name: m for m in analysis.statements.values()}
    symbols = tuple(s.name for s in analysis.program.symbols)
    # isl was not asked about statements without instances; when they run, nothing happens.
    asked: set[str] = set()
    root.domain_get_domain().foreach_set(lambda s: asked.add(s.get_tuple_name()))
    reader = _Reader(models, symbols)
    trees = [reader.idle(m) for n, m in models.items() if n not in asked]
    busy = [m for n, m in models.items() if n in asked]
    if busy:
        trees.insert(0, reader.visit(root.child(0), busy))
    return normalize(Sequence(children=tuple(trees)))


class _Reader:
    def __init__(self, models: dict[str, StatementModel], symbols: tuple[str, ...]):
        self.models = models
        self.symbols = symbols
        indices = {n for m in models.values() for n in m.points.names}
        self.names = loop_names(symbols)
        self.time = _time_names(indices | set(symbols))

    def visit(self, node: Any, inside: list[StatementModel]) -> Tree:
        """The tree of a node that holds the statements ``inside``."""
        return normalize(self._visit(node, inside))

    def idle(self, model: StatementModel) -> Tree:
        """A statement without instances in loops over its indices."""
        name = model.statement.name
        loops = tuple(
            BandLoop(name=self.names.fresh(n), rows=((name, variable(n)),))
            for n in model.points.names
        )
        return normalize(Band(loops=loops, child=Leaf(statement=name)))

    def _visit(self, node: Any, inside: list[StatementModel]) -> Tree:
        kind = node.get_type()
        if kind == _NODE.leaf:
            inside = sorted(inside, key=lambda m: m.position)
            leaves: tuple[Tree, ...] = tuple(Leaf(statement=m.statement.name) for m in inside)
            return leaves[0] if len(leaves) == 1 else Sequence(children=leaves)
        if kind == _NODE.band:
            return self._band(node, inside)
        if kind in (_NODE.sequence, _NODE.set):
            parts = [self._filtered(node.child(k)) for k in range(node.n_children())]
            if kind == _NODE.set:
                parts.sort(key=lambda part: min(m.position for m in part[1]))
            return Sequence(children=tuple(self._visit(n.child(0), own) for n, own in parts))
        if kind == _NODE.filter:
            return self._visit(node.child(0), self._filtered(node)[1])
        raise LegalityUnknown(f"isl's schedule holds a node of type {kind}")

    def _filtered(self, node: Any) -> tuple[Any, list[StatementModel]]:
        names: list[str] = []
        node.filter_get_filter().foreach_set(lambda s: names.append(s.get_tuple_name()))
        return node, [m for m in self.models.values() if m.tuple_name in names]

    def _band(self, node: Any, inside: list[StatementModel]) -> Tree:
        partial = node.band_get_partial_schedule()
        loops: list[BandLoop] = []
        for k in range(node.band_n_member()):
            rows: dict[str, Affine] = {}

            def take(piece: Any, rows: dict[str, Affine] = rows) -> None:
                model = self.models[piece.get_space().get_tuple_name(IN)]
                rows[model.statement.name] = self._row(piece, model)

            _each_piecewise(partial.get_at(k), take)
            pairs = tuple((m.statement.name, rows[m.statement.name]) for m in inside)
            if all(row.is_const for _, row in pairs) and len({row for _, row in pairs}) == 1:
                continue  # the same moment for all: no loop
            loops.append(BandLoop(name=self._name(inside, rows), rows=pairs))
        child = self._visit(node.child(0), inside)
        if not loops:
            return child
        return Band(loops=tuple(loops), child=child, permutable=bool(node.band_get_permutable()))

    def _name(self, inside: list[StatementModel], rows: Mapping[str, Affine]) -> str:
        """The index that the row is, for the statement with most loops; else a name of its own."""
        first = max(inside, key=lambda m: len(m.points.names))
        row = rows[first.statement.name]
        plain = row - row.const
        if plain in [variable(n) for n in first.points.names]:
            return self.names.fresh(str(plain))
        return self.names.fresh(self.time)

    def _row(self, piecewise: Any, model: StatementModel) -> Affine:
        pieces: list[Any] = []
        piecewise.foreach_piece(lambda _, aff: pieces.append(aff))
        if len(pieces) != 1:
            raise LegalityUnknown("isl's schedule has a piecewise row")
        return self._affine(pieces[0], model)

    def _affine(self, aff: Any, model: StatementModel) -> Affine:
        """An isl affine expression; its divisions become floors."""
        denominator = int(aff.get_denominator_val().to_python())
        parts: list[tuple[Affine, int]] = []
        for kind, names in ((PARAM, self.symbols), (IN, model.points.names)):
            for k, name in enumerate(names):
                parts.append((variable(name), self._scaled(aff, kind, k, denominator)))
        for k in range(aff.dim(isl.dim_type.div)):
            factor = self._scaled(aff, isl.dim_type.div, k, denominator)
            if factor:
                parts.append((self._division(aff.get_div(k), model), factor))
        constant = aff.get_constant_val().mul(isl.Val(denominator)).to_python()
        total = affine_sum(parts, int(constant))
        return total if denominator == 1 else floor_div(total, denominator)

    def _division(self, aff: Any, model: StatementModel) -> Affine:
        denominator = int(aff.get_denominator_val().to_python())
        whole = self._affine(aff.scale_val(denominator), model)
        return floor_div(whole, denominator)

    def _scaled(self, aff: Any, kind: Any, k: int, denominator: int) -> int:
        value = aff.get_coefficient_val(kind, k).mul(isl.Val(denominator))
        return int(value.to_python())


def _each_piecewise(union: Any, take: Callable[[Any], None]) -> None:
    union.foreach_pw_aff(take)


def _time_names(taken: set[str]) -> str:
    """A name for loops over time that is no index."""
    return next(n for n in ("t", "time", "step", "t_") if n not in taken)
