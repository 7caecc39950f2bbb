"""The choices of an affine kernel's schedule as knobs: which order, and how each of its nests runs.

``Space.schedule`` makes decisions (``knobs.Choices``) a schedule: the heuristic's without further
word, a search's otherwise. Every point is a schedule that can be applied, if not one that the
checker accepts: it alone judges. What may be decided for one nest is in ``affine_knobs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, affine_sum, variable
from nestor.ir.program import Program
from nestor.ir.schedule import Arrange, Parallel, Schedule, Step
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence, Tree, tree_statements
from nestor.passes.affine_access import statement_views
from nestor.passes.affine_choices import Choice, choices_of, rows_apart, steps_of
from nestor.passes.affine_facts import AffineFacts, Proposal
from nestor.passes.affine_knobs import Defaults, decide_choice
from nestor.passes.affine_nests import Nest, find_nests
from nestor.passes.knobs import Choices, Knob, Value
from nestor.target.cpu import CpuTarget

Point = Mapping[str, Value]

ORDER = "order"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A proposal with what may be done to each of its nests.

    ``outer``: loops of bands around nests that may run in parallel, outer ones first.
    ``keeps_sums``: sums are evaluated in the order in which they are written.
    """

    proposal: Proposal
    nests: tuple[Nest, ...]
    choices: tuple[tuple[Choice, ...], ...]
    outer: tuple[str, ...]
    keeps_sums: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is open about a kernel's schedule, and what the heuristic decides.

    Attributes:
        plans: by the proposal's origin. The knob ``order`` picks one; names of its own knobs start
            with the origin.
        order: the heuristic's plan.
        outer: by origin, the parallel loops around nests.
        shapes, threads: by origin and number of a nest: its shape; whether that is parallel.
    """

    program: Program
    target: CpuTarget
    plans: Mapping[str, Plan]
    order: str
    outer: Mapping[str, frozenset[str]]
    shapes: Mapping[tuple[str, int], str]
    threads: Mapping[tuple[str, int], bool]

    def default(self) -> dict[str, Value]:
        """The heuristic's point."""
        return dict(self._asked({}).point())

    def knobs(self, point: Point) -> tuple[Knob, ...]:
        """What is asked for on the way to ``point``."""
        return tuple(self._asked(point).asked.values())

    def _asked(self, point: Point) -> Choices:
        choices = Choices(point)
        self.schedule(choices)
        return choices

    def decide_order(self, choices: Choices) -> str:
        """Which plan."""
        return choices.word(ORDER, tuple(self.plans), self.order, "which proposal for the order")

    def decide_around(self, choices: Choices, origin: str) -> frozenset[str]:
        """The parallel loops around nests; of one within another the outer one counts."""
        plan = self.plans[origin]
        wanted = [
            loop
            for loop in plan.outer
            if choices.size(
                f"{origin}/parallel {loop}",
                (0, 1),
                int(loop in self.outer[origin]),
                "whether a loop around nests is parallel",
            )
        ]
        hidden: set[str] = set()
        for nest in plan.nests:
            hidden |= set([n for n in nest.outer if n in wanted][1:])
        return frozenset(wanted) - hidden

    def decide_nest(self, choices: Choices, origin: str, nest: int) -> Choice:
        """How the nest of that number runs."""
        plan, key = self.plans[origin], (origin, nest)
        defaults = Defaults(
            options=plan.choices[nest],
            shape=self.shapes[key],
            is_threaded=self.threads[key],
            keeps_sums=plan.keeps_sums,
        )
        name = f"{origin}/{nest}"
        return decide_choice(choices, name, plan.nests[nest], self.target, defaults)

    def schedule(self, choices: Choices) -> Schedule:
        """The schedule that ``choices`` decide on."""
        origin = self.decide_order(choices)
        plan = self.plans[origin]
        tree = plan.proposal.tree
        steps: list[Step] = []
        around = self.decide_around(choices, origin)
        for k, nest in enumerate(plan.nests):
            choice = self.decide_nest(choices, origin, k)
            if around & set(nest.outer):
                choice = replace(choice, parallel=None, wave=None)
            steps += steps_of(nest, choice)
            if choice.is_apart:
                tree = _split_rows(tree, nest)
        steps += [Parallel(loop=loop) for loop in plan.outer if loop in around]
        return (Arrange(tree=tree), *steps)


def make_plan(
    program: Program,
    target: CpuTarget,
    proposal: Proposal,
    sizes: Mapping[str, int] | None = None,
) -> Plan:
    """What may be done to the nests of ``proposal``."""
    views = statement_views(program, proposal.tree)
    nests = find_nests(program, proposal.tree, proposal.bands, views, sizes)
    choices = tuple(tuple(choices_of(nest, target)) for nest in nests)
    return Plan(
        proposal=proposal, nests=tuple(nests), choices=choices, outer=_parallel_outer(proposal)
    )


def _parallel_outer(proposal: Proposal) -> tuple[str, ...]:
    """Loops of bands with bands below that no dependence crosses where they stand."""
    found: list[str] = []

    def visit(tree: Tree) -> bool:
        match tree:
            case Leaf():
                return False
            case Sequence():
                return sum(visit(child) for child in tree.children) > 0  # visits all of them
            case Band():
                names = [loop.name for loop in tree.loops]
                facts = proposal.band_of(names[0])
                at = len(found)
                if visit(tree.child):
                    own = [n for k, n in enumerate(names) if not facts.carried(n, names[:k])]
                    found[at:at] = own[:1]
                return True

    visit(proposal.tree)
    return tuple(found)


def schedule_of(space: Space, point: Point) -> Schedule:
    """The schedule at ``point``; values that a knob does not have give way to its default."""
    return space.schedule(Choices(point))


def _split_rows(tree: Tree, nest: Nest) -> Tree:
    """The innermost loop of ``nest`` for each of its statements by itself."""
    match tree:
        case Leaf():
            return tree
        case Sequence():
            return Sequence(children=tuple(_split_rows(c, nest) for c in tree.children))
        case Band():
            if tuple(loop.name for loop in tree.loops) != nest.loops:
                return replace(tree, child=_split_rows(tree.child, nest))
            last = tree.loops[-1]
            rows = tuple(
                Band(
                    loops=(BandLoop(name=rows_apart(nest, s), rows=((s, row),)),),
                    child=Leaf(statement=s),
                )
                for s in tree_statements(tree.child)
                for row in [_unskewed(nest, s, last)]
            )
            return replace(tree, loops=tree.loops[:-1], child=Sequence(children=rows))


def _unskewed(nest: Nest, statement: str, last: BandLoop) -> Affine:
    """The statement's row in ``last`` less what the loops around hold still.

    A skewed row would start at another lane of its vectors in each iteration around.
    """
    row = last.row(statement)
    view = next(v for v in nest.views if v.name == statement)
    moving = {index for index, by_loop in view.moves.items() if by_loop.get(last.name)}
    own = [(variable(n), c) for n in sorted(moving) if (c := row.coefficient(n))]
    is_known = all(view.moves.values()) and all(isinstance(atom, str) for atom, _ in row.terms)
    return affine_sum(own) if own and is_known else row


def parallel_around(space: Space, point: Point) -> frozenset[str]:
    """The parallel loops around nests at ``point``."""
    choices = Choices(point)
    return space.decide_around(choices, space.decide_order(choices))


def choice_at(space: Space, point: Point, nest: int) -> Choice:
    """How the nest of that number runs at ``point``."""
    choices = Choices(point)
    return space.decide_nest(choices, space.decide_order(choices), nest)


def plans_of(
    program: Program,
    target: CpuTarget,
    facts: AffineFacts,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Plan]:
    """A plan for each proposal, by its origin."""
    return {p.origin: make_plan(program, target, p, sizes) for p in facts.proposals}
