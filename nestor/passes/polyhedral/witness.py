"""Turn a counter-example that isl found into an ``IllegalSchedule`` a person can follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nestor.errors import IllegalSchedule
from nestor.ir.affine import Affine
from nestor.passes.polyhedral.isl_util import coordinates
from nestor.passes.polyhedral.model import Access, Model, Site, StatementInfo

Env = dict[str, int]


def refuse(
    model: Model, question: str, headline: str, lines: Sequence[str], witness: Mapping[str, object]
) -> IllegalSchedule:
    """The error: a headline that names the kernel, then one indented line a fact."""
    text = [f"{headline} in kernel '{model.kernel.name}'", *(f"  {line}" for line in lines)]
    return IllegalSchedule("\n".join(text), question=question, witness=dict(witness))


def sample_site(site: Site, points: Any) -> Env | None:
    """Loops, symbols and free variables of one point of ``points``; None if it is empty."""
    found = coordinates(points)
    if found is None:
        return None
    return _environment(site, found[0], found[1][: len(site.loops)], found[1])


def sample_pair(a: Site, b: Site, pairs: Any, free: tuple[int, int] = (0, 0)) -> tuple[Env, Env]:
    """One pair of iterations of ``pairs`` (a relation between the sites' loops)."""
    found = coordinates(pairs)
    assert found is not None, "a relation that is not empty has a point"
    symbols, values = found
    split = len(a.loops) + free[0]
    left, right = values[:split], values[split:]
    return (
        _environment(a, symbols, left[: len(a.loops)], left),
        _environment(b, symbols, right[: len(b.loops)], right),
    )


def _environment(site: Site, symbols: list[int], loops: list[int], every: list[int]) -> Env:
    env = {v.index: x for v, x in zip(site.loops, loops)}
    env.update((f"?{k}", x) for k, x in enumerate(every[len(site.loops) :]))
    env.update((s.name, x) for s, x in zip(site.points.symbols, symbols))
    return env


def instance_text(site: Site, env: Env) -> str:
    """``S[t=0, i=1]``, with the phase where it is not the plain one."""
    inner = ", ".join(f"{n}={v}" for n, v in _instance(site, env).items())
    phase = "" if site.compute.phase == "point" else f" ({site.compute.phase})"
    return f"{site.compute.statement}[{inner}]{phase}"


def _instance(site: Site, env: Env) -> dict[str, int]:
    """Indices in scope: the init of a scan may name reduced ones, whose loops are not open."""
    known = env.keys()
    return {n: a.evaluate(env) for n, a in site.compute.instance if a.variables() <= known}


def instance_facts(site: Site, env: Env) -> dict[str, object]:
    """The same for programs: statement, phase, instance, the values of loops and symbols."""
    return {
        "statement": site.compute.statement,
        "phase": site.compute.phase,
        "instance": _instance(site, env),
        "loops": {v.index: env[v.index] for v in site.loops},
        "symbols": {s.name: env[s.name] for s in site.points.symbols},
        "site": site.uid,
    }


def cell_text(name: str, cell: Sequence[Affine], env: Env) -> str:
    """``A[1, 2]``."""
    return f"{name}[{', '.join(str(c.evaluate(env)) for c in cell)}]"


def where_from(info: StatementInfo | None) -> list[str]:
    """A line that names the user's source, if it is known."""
    if info is None or info.statement.origin is None:
        return []
    return [f"from {info.statement.origin}"]


def refuse_pair(
    model: Model,
    question: str,
    headline: str,
    a: Access,
    b: Access,
    pairs: Any,
    explain: str,
    fix: str,
    **more: object,
) -> IllegalSchedule:
    """Two accesses that clash; ``more`` joins the witness.

    ``explain`` may use ``{a}``, ``{b}``, ``{at}`` (the element) and ``{cell}`` (where it is kept).
    """
    env_a, env_b = sample_pair(a.site, b.site, pairs, (len(a.free), len(b.free)))
    at = cell_text(a.tensor, a.element, env_a)
    facts = {
        "a": instance_text(a.site, env_a),
        "b": instance_text(b.site, env_b),
        "at": at,
        "cell": cell_text(a.place.name, a.cell, env_a),
    }
    witness = {
        "a": instance_facts(a.site, env_a),
        "b": instance_facts(b.site, env_b),
        "tensor": a.tensor,
        "element": tuple(c.evaluate(env_a) for c in a.element),
        "place": a.place.name,
        "cell": tuple(c.evaluate(env_a) for c in a.cell),
        **more,
    }
    origin = where_from(model.statements.get(a.site.compute.statement))
    lines = [explain.format(**facts), *origin, f"fix: {fix}"]
    return refuse(model, question, headline, lines, witness)
