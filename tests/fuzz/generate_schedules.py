"""Random schedules: some legal by construction, some wild.

Steps are proposed against the state that the earlier ones left (``nest.initial_state``,
``nest.apply_step``), so that most of them name loops that exist. A step that does not fit is
*malformed* (``UserError``), is counted, and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from nestor.errors import UserError
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import (
    Accumulate,
    ComputeAt,
    Fuse,
    Pack,
    Parallel,
    Reorder,
    Schedule,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.passes.nest import ScheduleState, StatementState, apply_step, initial_state

TILES = (1, 2, 2, 3, 4, 4, 5, 7, 8, 8, 16, 32)


@dataclass(slots=True)
class Plan:
    """A schedule under construction.

    ``malformed``: how many proposed steps were refused as not fitting.
    """

    kernel: Program
    state: ScheduleState
    rng: Random
    steps: list[Step] = field(default_factory=list)
    malformed: int = 0

    def try_step(self, step: Step) -> bool:
        """Apply ``step`` if it fits."""
        try:
            apply_step(self.state, step)
        except UserError:
            self.malformed += 1
            return False
        self.steps.append(step)
        return True

    def statements(self) -> list[StatementState]:
        """States of all statements, in running order."""
        return list(self.state.statements.values())

    def chosen(self) -> StatementState:
        """A random one."""
        return self.rng.choice(self.statements())

    def is_constant(self, loop: str) -> bool:
        """Whether the loop (or the tile it belongs to) has a constant extent."""
        info = self.state.loops[loop]
        while info.parent is not None:
            if info.half == "i":
                return True
            info = self.state.loops[info.parent]
        return info.extent is not None and info.extent.is_const


def random_schedule(kernel: Program, seed: str) -> tuple[Schedule, int, str]:
    """Steps, how many proposals were malformed, and the kind (``legal`` or ``wild``)."""
    rng = Random(f"schedule {seed}")
    plan = Plan(kernel, initial_state(kernel), rng)
    kind = "legal" if rng.random() < 0.6 else "wild"
    if kind == "legal":
        careful(plan)
    else:
        if rng.random() < 0.5:
            careful(plan)
        for _ in range(rng.randint(1, 8)):
            plan.try_step(wild_step(plan))
    return tuple(plan.steps), plan.malformed, kind


# Legal by construction


def careful(plan: Plan) -> None:
    """Steps that keep what the Program orders, as far as local rules can tell."""
    rng = plan.rng
    fused = rng.random() < 0.6 and _fuse_rows(plan)
    for user in plan.statements():
        _careful_statement(plan, user, fused)
    if fused and rng.random() < 0.6:
        for t in plan.kernel.tensors:
            if t.role == "temp" and rng.random() < 0.7 and _is_plain(plan.kernel, t.name):
                plan.try_step(ComputeAt(tensor=t.name, scope=rng.choice(["local", "register"])))
    for t in plan.kernel.tensors:
        if t.role in ("parameter", "constant") and rng.random() < 0.2:
            _pack(plan, t.name)


def _is_plain(kernel: Program, name: str) -> bool:
    """No other tensor shares its bytes."""
    t = kernel.tensor(name)
    return t.alias_of is None and all(x.alias_of != name for x in kernel.tensors)


def _fuse_rows(plan: Plan) -> bool:
    """Fuse the outer loops of neighbours where both only index rows in the same way."""
    users = plan.statements()
    if len(users) < 2 or any(len(u.statement.order) > 1 for u in users):
        return False
    fused = False
    first = users[0]
    for second in users[1:]:
        pairs = list(zip(_free(first), _free(second)))
        for a, b in pairs[: plan.rng.choice([1, 1, 2, 3])]:
            mine, theirs = plan.state.loops[a], plan.state.loops[b]
            if mine.extent is None or mine.extent != theirs.extent:
                break
            order_a, order_b = list(first.loops), list(second.loops)
            depth = len([x for x in first.loops if x in second.loops])
            _move(order_a, a, depth)
            _move(order_b, b, depth)
            plan.try_step(Reorder(statement=first.statement.name, loops=tuple(order_a)))
            plan.try_step(Reorder(statement=second.statement.name, loops=tuple(order_b)))
            if not plan.try_step(Fuse(first=a, second=b)):
                break
            fused = True
    return fused


def _move(order: list[str], loop: str, position: int) -> None:
    order.remove(loop)
    order.insert(position, loop)


def _free(user: StatementState) -> list[str]:
    """Loops of the written element, in the order in which the first target names them."""
    names = [str(i) for i in user.statement.writes[0].indices]
    loops = [n for n in user.loops if n not in user.reduced]
    prefix = user.statement.name + "."
    return sorted(
        loops, key=lambda n: names.index(n[len(prefix) :]) if n[len(prefix) :] in names else 99
    )


def _careful_statement(plan: Plan, user: StatementState, fused: bool) -> None:
    rng, s = plan.rng, user.statement
    sequential = len(s.order) // 2
    fixed = sequential + (1 if fused else 0)
    is_serial = s.scatter == "last" or (s.reduction is not None and s.reduction.into)
    for loop in list(user.loops[fixed:]):
        if rng.random() < 0.45 and not _is_scanned(s, user, loop):
            plan.try_step(Tile(loop=loop, size=rng.choice(TILES)))
    if s.reduction is not None and not s.reduction.scan and rng.random() < 0.25:
        reduced = [n for n in user.loops if n in user.reduced and plan.is_constant(n)]
        if reduced and s.reduction.monoid.commutative and not s.reduction.into:
            lanes = rng.choice([2, 3, 4, 8])
            loop = rng.choice(reduced)
            if plan.try_step(SplitReduction(loop=loop, lanes=lanes)):
                _lanes_inside(plan, user, loop)
    elif not is_serial or rng.random() < 0.2:
        _shuffle(plan, user, fixed)
    if s.reduction is not None and rng.random() < 0.5:
        plan.try_step(Accumulate(statement=s.name, scope=rng.choice(["register", "local"])))
    if not is_serial:
        _annotate(plan, user, sequential)


def _is_scanned(s: Statement, user: StatementState, loop: str) -> bool:
    return s.reduction is not None and s.reduction.scan and loop in user.reduced


def _shuffle(plan: Plan, user: StatementState, fixed: int) -> None:
    """A random order; tiles keep the outer half outside, ordered reductions their order."""
    s = user.statement
    head, rest = user.loops[:fixed], user.loops[fixed:]
    keys = {n: plan.rng.random() for n in rest}
    for n in rest:
        if n.endswith(".i") and n[:-2] + ".o" in keys:
            outer = keys[n[:-2] + ".o"]
            if keys[n] < outer:
                keys[n], keys[n[:-2] + ".o"] = outer, keys[n]
    order = sorted(rest, key=keys.__getitem__)
    if s.reduction is not None and (s.reduction.scan or not s.reduction.monoid.commutative):
        reduced = iter([n for n in rest if n in user.reduced])
        order = [next(reduced) if n in user.reduced else n for n in order]
    plan.try_step(Reorder(statement=s.name, loops=(*head, *order)))


def _lanes_inside(plan: Plan, user: StatementState, loop: str) -> None:
    """Reduced loops before the lanes; the lanes innermost, as vectors most often."""
    lanes = f"{loop}.i"
    if lanes not in user.loops:
        return
    order = [n for n in user.loops if n != lanes]
    plan.try_step(Reorder(statement=user.statement.name, loops=(*order, lanes)))
    if plan.rng.random() < 0.7:
        plan.try_step(Vectorize(loop=lanes))


def _annotate(plan: Plan, user: StatementState, sequential: int) -> None:
    rng, state = plan.rng, plan.state
    scanned = user.statement.reduction is not None and user.statement.reduction.scan
    free = [n for n in user.loops[sequential:] if n not in user.reduced]
    for n in free:
        if rng.random() < 0.35 and state.loops[n].kind == "serial" and not state.loops[n].lanes:
            shared = len(state.users(n)) > 1
            if not shared or rng.random() < 0.5:
                plan.try_step(Parallel(loop=n))
        else:
            break
    if not user.loops:
        return
    last = user.loops[-1]
    if last not in user.reduced and plan.is_constant(last) and rng.random() < 0.7:
        if state.loops[last].kind == "serial" and not scanned:
            plan.try_step(Vectorize(loop=last))
    for n in user.loops[sequential:]:
        if rng.random() < 0.15 and plan.is_constant(n) and state.loops[n].kind == "serial":
            plan.try_step(Unroll(loop=n))


def _pack(plan: Plan, name: str) -> None:
    t = plan.kernel.tensor(name)
    if not t.shape or t.alias_of is not None or not all(e.is_const for e in t.shape):
        return
    order = list(range(len(t.shape)))
    plan.rng.shuffle(order)
    dims = tuple(sorted(plan.rng.sample(order, plan.rng.randint(0, min(2, len(order))))))
    blocks = tuple(plan.rng.choice([2, 4, 8]) for _ in dims)
    plan.try_step(Pack(tensor=name, order=tuple(order), dims=dims, blocks=blocks))


# Wild


def wild_step(plan: Plan) -> Step:
    """Any step, on loops that exist or once did."""
    name = plan.rng.choice(list(_WILD))
    return _WILD[name](plan)


def _any_loop(plan: Plan) -> str:
    loops = [n for n, x in plan.state.loops.items() if not x.tiled or plan.rng.random() < 0.1]
    return plan.rng.choice(loops) if loops else "S0.i"


def _wild_reorder(plan: Plan) -> Step:
    user = plan.chosen()
    order = list(user.loops)
    plan.rng.shuffle(order)
    return Reorder(statement=user.statement.name, loops=tuple(order))


def _wild_fuse(plan: Plan) -> Step:
    users = plan.statements()
    options = [
        Fuse(first=a.loops[d], second=b.loops[d])
        for x, a in enumerate(users)
        for b in users[x + 1 :]
        for d in range(min(len(a.loops), len(b.loops)))
        if a.loops[:d] == b.loops[:d] and a.loops[d] != b.loops[d]
    ]
    if options and plan.rng.random() < 0.9:
        return plan.rng.choice(options)
    return Fuse(first=_any_loop(plan), second=_any_loop(plan))


def _wild_vector(plan: Plan) -> Step:
    user = plan.chosen()
    if user.loops and plan.rng.random() < 0.8:
        return Vectorize(loop=user.loops[-1])
    return Vectorize(loop=_any_loop(plan))


def _wild_split(plan: Plan) -> Step:
    reduced = sorted(n for u in plan.statements() for n in u.reduced)
    loop = plan.rng.choice(reduced) if reduced else _any_loop(plan)
    return SplitReduction(loop=loop, lanes=plan.rng.choice([2, 3, 4, 8]))


def _wild_pack(plan: Plan) -> Step:
    candidates = [t for t in plan.kernel.tensors if t.shape and t.role == "parameter"]
    if not candidates:
        return Tile(loop=_any_loop(plan), size=3)
    t = plan.rng.choice(candidates)
    order = list(range(len(t.shape)))
    plan.rng.shuffle(order)
    return Pack(tensor=t.name, order=tuple(order), dims=(order[0],), blocks=(3,))


def _wild_compute_at(plan: Plan) -> Step:
    temps = [t.name for t in plan.kernel.tensors if t.role == "temp"]
    name = plan.rng.choice(temps or [t.name for t in plan.kernel.tensors])
    return ComputeAt(tensor=name, scope=plan.rng.choice(["local", "register"]))


_WILD: dict[str, Callable[[Plan], Step]] = {
    "tile": lambda p: Tile(loop=_any_loop(p), size=p.rng.choice(TILES)),
    "tile again": lambda p: Tile(loop=_any_loop(p), size=p.rng.choice([0, 2, 3])),
    "reorder": _wild_reorder,
    "fuse": _wild_fuse,
    "fuse again": _wild_fuse,
    "parallel": lambda p: Parallel(loop=_any_loop(p)),
    "vectorize": _wild_vector,
    "unroll": lambda p: Unroll(loop=_any_loop(p)),
    "accumulate": lambda p: Accumulate(
        statement=p.chosen().statement.name, scope=p.rng.choice(["register", "local"])
    ),
    "compute at": _wild_compute_at,
    "split": _wild_split,
    "pack": _wild_pack,
}
