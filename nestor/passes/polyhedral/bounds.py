"""Question 4: is every access inside its memory, under its predicate and guards?

A compute that passed questions 0 and 1 accesses kernel tensors exactly as its statement does, at
instances of the statement's domain: so tensors are asked about once a statement, in the few
dimensions of its domain. Buffers are asked about in the nest. Data-dependent indices are checked
when the code runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nestor.errors import IRError
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import IndexExpr, loads
from nestor.ir.program import Layout, Tensor
from nestor.passes.polyhedral.isl_util import Points, Session, coordinates
from nestor.passes.polyhedral.model import TRANSFERS, Access, Model, StatementInfo
from nestor.passes.polyhedral.witness import (
    cell_text,
    instance_facts,
    instance_text,
    refuse,
    sample_site,
    where_from,
)


def check_bounds(model: Model, session: Session) -> None:
    """Raises: ``IllegalSchedule`` (question ``bounds``)."""
    for info in model.statements.values():
        for tensor, indices, predicate, points in _statement_accesses(info):
            if tensor not in model.tensors:
                raise IRError(f"'{info.statement.name}' uses the unknown tensor '{tensor}'")
            shape = model.tensors[tensor].shape
            if len(indices) != len(shape):
                raise IRError(f"'{info.statement.name}' indexes '{tensor}' with {len(indices)}")
            for index, extent in zip(indices, shape):
                if isinstance(index, Affine):
                    _check_statement(model, session, info, points, predicate, tensor, index, extent)
    for t in model.nest.tensors:
        if t.layout is not None:
            _check_layout(model, session, t, t.layout)
    seen: set[object] = set()
    for access in _buffer_accesses(model):
        key = (access.site.uid, access.place, access.cell, access.predicate)
        if key not in seen:
            seen.add(key)
            _check_buffer(model, session, access)


def _statement_accesses(
    info: StatementInfo,
) -> Iterator[tuple[str, tuple[IndexExpr, ...], tuple[Affine, ...], Points]]:
    s = info.statement
    is_output = s.reduction is not None and not s.reduction.scan and not info.is_scattering
    for w in s.writes:
        yield w.tensor, w.indices, (), info.outputs if is_output else info.points
        for index in w.indices:
            if not isinstance(index, Affine):
                for load in loads(index):
                    yield load.tensor, load.indices, load.predicate, info.points
    for element in s.elements:
        for load in loads(element):
            yield load.tensor, load.indices, load.predicate, info.points
    is_running = s.reduction is not None and s.reduction.scan
    for final in s.reduction.final if s.reduction else ():
        for load in loads(final):
            points = info.points if is_running else info.outputs
            yield load.tensor, load.indices, load.predicate, points


def _outside(
    session: Session, points: Points, predicate: tuple[Affine, ...], index: Affine, extent: Affine
) -> Any | None:
    """Points where ``index`` is not in ``[0, extent)``; None if there are none."""
    low = index.bounds(points.ranges)[0]
    room = (extent - 1 - index).simplify(points.ranges).bounds(points.ranges)[0]
    for is_proved, bad in ((low, -index - 1), (room, index - extent)):
        if is_proved is not None and is_proved >= 0:
            continue
        found = points.domain((*predicate, bad))
        if not session.is_empty(found):
            return found
    return None


def _check_statement(
    model: Model,
    session: Session,
    info: StatementInfo,
    points: Points,
    predicate: tuple[Affine, ...],
    tensor: str,
    index: Affine,
    extent: Affine,
) -> None:
    found = _outside(session, points, predicate, index, extent)
    if found is None:
        return
    sample = coordinates(found)
    assert sample is not None
    instance = dict(zip(points.names, sample[1]))
    symbols = {s.name: v for s, v in zip(points.symbols, sample[0])}
    env = {**instance, **symbols}
    inner = ", ".join(f"{n}={v}" for n, v in instance.items())
    lines = [
        f"{info.statement.name}[{inner}] accesses '{tensor}' at index {index.evaluate(env)} "
        f"of a dimension of {extent.evaluate(env)}",
        *where_from(info),
        "fix: restrict the domain, or give the load a predicate",
    ]
    facts = {
        "a": {"statement": info.statement.name, "instance": instance, "symbols": symbols},
        "tensor": tensor,
        "index": index.evaluate(env),
        "extent": extent.evaluate(env),
    }
    raise refuse(model, "bounds", "an access leaves its tensor", lines, facts)


def _check_layout(model: Model, session: Session, tensor: Tensor, layout: Layout) -> None:
    """A layout gives each element a cell of its own, inside its physical shape."""
    names = tuple(f"d{k}" for k in range(len(tensor.shape)))
    constraints: list[Affine] = []
    ranges = dict(model.kernel.symbol_ranges())
    for name, extent in zip(names, tensor.shape):
        index = affine(name)
        constraints += [index, extent - 1 - index]
        ranges[name] = (0, (extent - 1).bounds(ranges)[1])
    points = Points(names, model.kernel.symbols, tuple(constraints), (), ranges)
    fits = len(layout.physical) == len(layout.shape)
    for index, extent in zip(layout.physical, layout.shape):
        fits &= _outside(session, points, (), index, extent) is None
    session.queries += 1
    if not fits or not points.relation(layout.physical).is_injective():
        reason = "gives two elements one cell" if fits else "leaves its physical shape"
        lines = [f"the layout of '{tensor.name}' {reason}"]
        raise refuse(model, "bounds", "a layout is wrong", lines, {"tensor": tensor.name})


def _buffer_accesses(model: Model) -> Iterator[Access]:
    for access in model.accesses:
        if access.place.is_buffer or access.site.compute.phase in TRANSFERS:
            yield access
    for (statement, _), uses in model.uses.items():
        for use in uses:
            if use.place.is_buffer:
                yield Access(use.site, "write", use.place, use.cell, statement, ())


def _check_buffer(model: Model, session: Session, access: Access) -> None:
    site = access.site
    for index, extent in zip(access.cell, access.place.shape):
        if any(v.startswith("?") for v in index.variables()):
            room = (extent - access.free[int(str(index)[1:])]).bounds(site.points.ranges)[0]
            if room is None or room < 0:
                raise IRError(f"buffer '{access.place.name}' does not hold the whole dimension")
            continue
        found = _outside(session, site.points, access.predicate, index, extent)
        if found is None:
            continue
        env = sample_site(site, found)
        assert env is not None
        cell = cell_text(access.place.name, (index,), env)
        lines = [
            f"{instance_text(site, env)} accesses {cell} of a dimension of {extent.evaluate(env)}",
            "fix: make the buffer as large as its footprint",
        ]
        facts = {
            "a": instance_facts(site, env),
            "tensor": access.place.name,
            "index": index.evaluate(env),
            "extent": extent.evaluate(env),
        }
        raise refuse(model, "bounds", "an access leaves its buffer", lines, facts)
