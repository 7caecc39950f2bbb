"""The kinds of statements that random Programs are made of."""

from __future__ import annotations

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Expr, Index, IndexExpr, Load, Select, Var, binary, const, unary, walk
from nestor.ir.monoid import (
    Monoid,
    all_of,
    any_of,
    argmax_of,
    argmin_of,
    logsumexp_of,
    max_of,
    min_of,
    online_softmax_of,
    prod_of,
    state_vars,
    sum_of,
    welford_of,
)
from nestor.ir.program import Domain, IndexRange, Reduction
from nestor.ir.types import DType
from tests.fuzz.generate_expressions import convert
from tests.fuzz.generate_programs import Dim, Known, Maker, dim

F32, I64 = DType.f32, DType.i64


def _domain(m: Maker, rank: int) -> tuple[list[str], dict[str, Dim]]:
    """Names and extents of a box; sometimes those of a tensor that exists."""
    names = m.index_names(rank)
    known = [t for t in m.tensors if t.role in ("temp", "output") and len(t.dims) == rank]
    if known and m.rng.random() < 0.6:
        return names, dict(zip(names, m.rng.choice(known).dims, strict=True))
    return names, dict(zip(names, m.dims(rank), strict=True))


def pointwise(m: Maker) -> None:
    """``t[…] = f(loads)``; sometimes two results at once."""
    names, dims = _domain(m, m.rng.choice([0, 1, 1, 2, 2, 2, 3]))
    leaves = m.leaves(dims, m.rng.choice([1, 1, 2, 3]))
    ranges = [(n, dims[n]) for n in names]
    count = 2 if m.rng.random() < 0.12 else 1
    elements, targets = [], []
    for _ in range(count):
        dtype = m.dtype()
        elements.append(m.expression(dtype, leaves, dims))
        targets.append(m.target(names, dims, dtype))
    m.features.add("pointwise" if count == 1 else "two results")
    m.statement(ranges, targets, elements)


def in_place(m: Maker) -> None:
    """``u[…] = f(u[…])`` on a tensor of the caller's, at the element's own place."""
    names, dims = _domain(m, m.rng.choice([1, 2]))
    dtype = m.dtype()
    u = m.add([dims[n] for n in names], dtype, m.rng.choice(["inout", "state"]), readable=False)
    at: list[IndexExpr] = [variable(n) for n in names]
    own = Load(tensor=u.name, indices=tuple(at), dtype=dtype)
    leaves = [own, *m.leaves(dims, 1)]
    m.features.add("in place")
    m.statement([(n, dims[n]) for n in names], [(u, at)], [m.expression(dtype, leaves, dims, 2)])
    u.readable = True


def strided_write(m: Maker) -> None:
    """Writes every other element, or a part, of a tensor that keeps the others."""
    names, dims = _domain(m, m.rng.choice([1, 2]))
    dtype = m.dtype()
    n = names[0]
    i, extent = variable(n), dims[n]
    step, start = m.rng.choice([(2, 0), (2, 1), (1, 2), (3, 1)])
    size = Dim(extent.value * step + start + 1, extent.expr * step + start + 1)
    u = m.add([size, *(dims[x] for x in names[1:])], dtype, "inout", readable=False)
    at: list[IndexExpr] = [i * step + start, *map(variable, names[1:])]
    m.features.add("strided write")
    elements = [m.expression(dtype, m.leaves(dims, 2), dims)]
    m.statement([(x, dims[x]) for x in names], [(u, at)], elements)
    u.readable = True


def concatenate(m: Maker) -> None:
    """Two statements write the two halves of one tensor, which is then read whole."""
    names, dims = _domain(m, m.rng.choice([1, 2]))
    n = names[0]
    first = dims[n]
    second = m.size()
    dtype = m.dtype()
    total = Dim(first.value + second.value, first.expr + second.expr)
    out = m.add([total, *(dims[x] for x in names[1:])], dtype, "temp", readable=False)
    rest: list[IndexExpr] = [variable(x) for x in names[1:]]
    for extent, start in ((first, affine(0)), (second, first.expr)):
        here = {**dims, n: extent}
        element = m.expression(dtype, m.leaves(here, 1), here, 1)
        m.statement([(x, here[x]) for x in names], [(out, [variable(n) + start, *rest])], [element])
    out.readable = True
    m.features.add("concatenate")


def triangle(m: Maker) -> None:
    """A triangular domain, with or without a further constraint."""
    rng = m.rng
    n = m.dims(1)[0]
    dtype = rng.choice([DType.f32, DType.f32, DType.f64, DType.i32])
    i, j = variable("i"), variable("j")
    lower, upper = rng.choice([(affine(0), i + 1), (i, n.expr), (affine(0), n.expr)])
    constraints: tuple[Affine, ...] = ()
    if rng.random() < 0.5 or (lower, upper) == (affine(0), n.expr):
        constraints = (rng.choice([i + j - 1, n.expr - 1 - i - j, j * 2 - i, i - j + 2]),)
    domain = Domain(
        ranges=(
            IndexRange(name="i", lower=affine(0), upper=n.expr),
            IndexRange(name="j", lower=lower, upper=upper),
        ),
        constraints=constraints,
    )
    dims = {"i": n, "j": n}
    element = m.expression(dtype, m.leaves(dims, 2), dims)
    m.features.add("triangle")
    if rng.random() < 0.5:
        monoid = _simple_monoid(m, dtype)
        out = m.add([n], dtype, "temp")
        m.statement(
            [], [(out, [i])], [element], domain=domain, reduction=plain_reduction(monoid, ["j"])
        )
    else:
        u = m.add([n, n], dtype, "inout")
        m.statement([], [(u, [i, j])], [element], domain=domain)


# Reductions


def _simple_monoid(m: Maker, dtype: DType) -> Monoid:
    if dtype is DType.bool:
        return m.rng.choice([any_of, all_of])()
    make = m.rng.choice([sum_of, sum_of, sum_of, max_of, min_of, prod_of])
    return make(dtype)


def plain_reduction(monoid: Monoid, reduced: list[str], **more: object) -> Reduction:
    final = tuple(Var(name=f"s{c}", dtype=d) for c, d in enumerate(monoid.dtypes))
    return Reduction(indices=tuple(reduced), monoid=monoid, final=final, **more)  # type: ignore[arg-type]


def affine_composition(dtype: DType) -> Monoid:
    """States are functions ``x ↦ p·x + q``; composing them does not commute."""
    a0, a1 = state_vars("a", (dtype,) * 2)
    b0, b1 = state_vars("b", (dtype,) * 2)
    return Monoid(
        name="compose",
        identity=(const(1, dtype), const(0, dtype)),
        combine=(binary("mul", a0, b0), binary("add", binary("mul", a1, b0), b1)),
        commutative=False,
    )


def xor_of(dtype: DType) -> Monoid:
    """A monoid that is not built in."""
    a, b = state_vars("a", (dtype,))[0], state_vars("b", (dtype,))[0]
    return Monoid(name="parity", identity=(const(0, dtype),), combine=(binary("xor", a, b),))


def reduction(m: Maker) -> None:
    """One result a row: over outer, inner or several indices, with a final map."""
    rng = m.rng
    rank = rng.choice([1, 2, 2, 2, 3])
    names, dims = _domain(m, rank)
    reduced = rng.sample(names, rng.choice([1, 1, min(2, rank)]))
    kept = [n for n in names if n not in reduced]
    reduced.sort(key=names.index)
    kind = rng.choice(
        ["simple"] * 6 + ["arg", "arg", "welford", "lse", "softmax", "compose", "xor"]
    )
    dtype = rng.choice([DType.f32] * 6 + [DType.f64, DType.i64, DType.i32, DType.i8, DType.u8])
    if kind == "simple" and rng.random() < 0.1:
        dtype = DType.bool
    if kind in ("welford", "lse", "softmax") and not dtype.is_float:
        dtype = F32
    if kind in ("compose", "xor") and not dtype.is_int:
        dtype = I64
    leaves = m.leaves(dims, rng.choice([1, 1, 2]))
    element = m.expression(dtype, leaves, dims, rng.choice([0, 0, 1, 2]))
    _reduce(m, kind, names, dims, reduced, kept, dtype, element)


def _reduce(
    m: Maker,
    kind: str,
    names: list[str],
    dims: dict[str, Dim],
    reduced: list[str],
    kept: list[str],
    dtype: DType,
    element: Expr,
) -> None:
    ranges = [(n, dims[n]) for n in names]
    out_dims = {n: dims[n] for n in kept}
    m.features.add(f"reduce {kind}")
    one, zero = const(1, dtype), const(0, dtype)
    position: Expr = Index(value=variable(reduced[0]), dtype=I64)
    elements: list[Expr] = [element]
    if kind == "simple":
        monoid = _simple_monoid(m, dtype)
    elif kind == "arg":
        monoid = m.rng.choice([argmax_of, argmin_of])(dtype)
        flat: Affine = affine(0)
        if all(dims[n].is_const for n in reduced):
            for n in reduced:
                flat = flat * dims[n].value + n
            position = Index(value=flat, dtype=I64)
        elements.append(position)
        if len(reduced) > 1 and flat == affine(0):
            return  # the position would not be unique
    elif kind == "welford":
        monoid, elements = welford_of(dtype), [element, zero, one]
    elif kind == "lse":
        monoid, elements = logsumexp_of(dtype), [element, one]
    elif kind == "softmax":
        weight = convert(m.read(dims), dtype)
        monoid, elements = online_softmax_of(dtype), [element, one, weight]
    elif kind == "compose":
        monoid = affine_composition(dtype)
        elements.append(m.expression(dtype, m.leaves(dims, 1), dims, 1))
    else:
        monoid = xor_of(dtype)
    finals = _finals(m, kind, monoid, out_dims)
    targets = [m.target(kept, dims, f.dtype) for f in finals]
    r = Reduction(indices=tuple(reduced), monoid=monoid, final=tuple(finals))
    m.statement(ranges, targets, elements, reduction=r)


def _finals(m: Maker, kind: str, monoid: Monoid, dims: dict[str, Dim]) -> list[Expr]:
    states: list[Expr] = [Var(name=f"s{c}", dtype=d) for c, d in enumerate(monoid.dtypes)]
    if kind == "arg":
        return m.rng.choice([states, [states[1]]])
    if kind == "welford":
        return m.rng.choice([states, [states[0], binary("div", states[1], states[2])]])
    if kind == "lse":
        return [binary("add", states[0], unary("log", states[1]))]
    if kind == "softmax":
        return [binary("div", states[2], states[1])]
    if m.rng.random() < 0.25:
        m.features.add("final map")
        leaves = [*states, *(m.leaves(dims, 1) if m.rng.random() < 0.5 else [])]
        dtype = m.dtype()
        final = m.expression(dtype, leaves, dims, 2)
        # A state that nothing reads is a degenerate reduction, which the checker refuses.
        if all(not isinstance(x, Var) for x in walk(final)):
            final = Select(condition=convert(states[0], DType.bool), a=final, b=final)
        return [final]
    return states if m.rng.random() < 0.8 else states[:1]


def contraction(m: Maker) -> None:
    """``Σ_k a[m, k]·b[k, n]`` with batches, permuted operands, several reduced indices."""
    rng = m.rng
    free = rng.choice([["m", "n"], ["m", "n"], ["b", "m", "n"], ["m"], ["n"]])
    reduced = rng.choice([["k"], ["k"], ["k", "l"]])
    names = [*free, *reduced]
    dims = dict(zip(names, m.dims(len(names), 500), strict=True))
    dtype = rng.choice([DType.f32] * 6 + [DType.f64, DType.i32, DType.i64])
    left = [n for n in names if n != "n"]
    right = [n for n in names if n != "m"]
    factors: list[Expr] = []
    for wanted, role in ((left, "input"), (right, "parameter")):
        wanted = list(wanted)
        if rng.random() < 0.4:
            rng.shuffle(wanted)
        storage = (
            rng.choice([dtype, dtype, dtype, DType.bf16, DType.f16]) if dtype is F32 else dtype
        )
        old = [t for t in m.tensors if t.readable and not t.indexes and t.role == "temp"]
        if role == "input" and old and rng.random() < 0.4:
            factors.append(convert(m.fit(rng.choice(old), {n: dims[n] for n in wanted}), dtype))
            continue
        t = m.add([dims[n] for n in wanted], storage, role)  # type: ignore[arg-type]
        load = Load(tensor=t.name, indices=tuple(map(variable, wanted)), dtype=storage)
        factors.append(convert(load, dtype))
    if rng.random() < 0.5:
        factors.reverse()
    out, at = m.target(free, dims, dtype)
    m.features.add("contraction")
    order = list(names)
    rng.shuffle(order)
    into = False
    if rng.random() < 0.15:
        into = True
        out.role = "inout"
        m.features.add("into")
    m.statement(
        [(n, dims[n]) for n in order],
        [(out, at)],
        [binary("mul", *factors)],
        reduction=plain_reduction(sum_of(dtype), [n for n in order if n in reduced], into=into),
    )


def convolution(m: Maker) -> None:
    """Windows with strides and padding; pooling, where there is no weight."""
    rng = m.rng
    stride, taps = rng.choice([1, 1, 2]), rng.choice([2, 3, 3])
    width = rng.choice([4, 5, 7, 9, 12])
    out = (width + 2 - taps) // stride + 1
    dims = {
        "c": dim(rng.choice([1, 2, 3])),
        "o": dim(rng.choice([1, 2, 5])),
        "p": dim(out),
        "r": dim(taps),
    }
    dtype = rng.choice([DType.f32] * 4 + [DType.f64, DType.i32])
    x = m.add([dims["c"], dim(width)], dtype, "input")
    at = variable("p") * stride + variable("r") - 1
    read = m.guarded(x, [variable("c"), at], (at, width - 1 - at))
    m.features.add("convolution")
    if rng.random() < 0.6:
        w = m.add([dims["o"], dims["c"], dims["r"]], dtype, "parameter")
        weight = Load(tensor=w.name, indices=tuple(map(variable, "ocr")), dtype=dtype)
        element, names, kept = binary("mul", read, weight), ["o", "p", "c", "r"], ["o", "p"]
        monoid = sum_of(dtype)
    else:
        element, names, kept = read, ["c", "p", "r"], ["c", "p"]
        monoid = _simple_monoid(m, dtype)
    target = m.target(kept, dims, dtype)
    m.statement(
        [(n, dims[n]) for n in names],
        [target],
        [element],
        reduction=plain_reduction(monoid, [n for n in names if n not in kept]),
    )


def scan(m: Maker) -> None:
    """Running reductions along one index, or two."""
    rng = m.rng
    names, dims = _domain(m, rng.choice([1, 2, 2, 3]))
    along = [rng.choice(names)] if len(names) < 3 or rng.random() < 0.7 else rng.sample(names, 2)
    dtype = rng.choice([DType.f32] * 4 + [DType.f64, DType.i64, DType.i32])
    element = m.expression(dtype, m.leaves(dims, 1), dims, rng.choice([0, 1]))
    monoid = _simple_monoid(m, dtype)
    elements = [element]
    finals: list[Expr] = [Var(name="s0", dtype=monoid.dtypes[0])]
    if dtype.is_int and rng.random() < 0.3:
        monoid, elements = affine_composition(dtype), [element, element]
        finals.append(Var(name="s1", dtype=dtype))
    m.features.add("scan")
    targets = [m.target(names, dims, dtype) for _ in finals]
    r = Reduction(indices=tuple(along), monoid=monoid, final=tuple(finals), scan=True)
    m.statement([(n, dims[n]) for n in names], targets, elements, reduction=r)


# Scatters


def scatter(m: Maker) -> None:
    """``u[ids[i], j] = …``: distinct targets, the last one, or combining."""
    rng = m.rng
    rows, columns = m.dims(2, 200)
    if rows.value == 0 or not rows.is_const:
        rows = dim(5)
    dims = {"i": rows, "j": columns}
    kind = rng.choice(["unique", "last", "into", "into"])
    dtype = rng.choice([DType.f32] * 3 + [DType.f64, DType.i64, DType.i8])
    bound = rows.value + 2 if kind == "unique" else max(4, rows.value // 2)
    u = m.add([dim(bound), columns], dtype, "inout", readable=False)
    row = m.index_load({"i": rows}, bound, distinct=kind == "unique")
    if not isinstance(row, Load) or not row.indices:
        row = m.index_load({"i": rows}, bound, distinct=True)
        m.tensors[-1].distinct = kind == "unique"
    element = m.expression(dtype, m.leaves(dims, 1), dims, 1)
    m.features.add(f"scatter {kind}")
    at: list[IndexExpr] = [row, variable("j")]
    ranges = [("i", rows), ("j", columns)]
    if kind == "into":
        monoid = _simple_monoid(m, dtype)
        reduced = rng.choice([["i"], ["i"], ["i", "j"]])
        m.statement(
            ranges, [(u, at)], [element], reduction=plain_reduction(monoid, reduced, into=True)
        )
    else:
        m.statement(ranges, [(u, at)], [element], scatter=kind)
    u.readable = True


def accumulate_into(m: Maker) -> None:
    """``u[j] += …`` over an unordered or a sequential index."""
    rng = m.rng
    names, dims = _domain(m, 2)
    dtype = rng.choice([DType.f32] * 3 + [DType.f64, DType.i32])
    kept, summed = names
    u = m.add([dims[kept]], dtype, "inout", readable=False)
    element = m.expression(dtype, m.leaves(dims, 1), dims, 1)
    order = None
    if rng.random() < 0.4:
        order = (m.position, summed, 0)
        m.position += 1
    m.features.add("into" if order is None else "seq into")
    m.statement(
        [(n, dims[n]) for n in names],
        [(u, [variable(kept)])],
        [element],
        order=order,
        reduction=plain_reduction(_simple_monoid(m, dtype), [summed], into=True),
    )
    u.readable = True


# Sequential regions


def stencil(m: Maker) -> None:
    """An in-place stencil: every sequential index carries a dependence."""
    rng = m.rng
    steps, n = rng.choice([1, 2, 3]), rng.choice([3, 4, 6, 9])
    dtype = rng.choice([DType.f32, DType.f32, DType.f64, DType.i32])
    two = rng.random() < 0.5
    u = m.add([dim(n)] * (2 if two else 1), dtype, "inout")
    i, j = variable("i"), variable("j")

    def near(di: int, dj: int) -> Expr:
        at = (i + di, j + dj) if two else (i + di,)
        return Load(tensor=u.name, indices=at, dtype=dtype)

    shifts = [(-1, 0), (0, 0), (1, 0), (0, -1), (0, 1), (-1, 1)]
    chosen = rng.sample(shifts, 3)
    leaves = [near(di, dj if two else 0) for di, dj in chosen]
    element = binary("add", leaves[0], binary("add", leaves[1], leaves[2]))
    if dtype.is_float:
        element = binary("mul", element, const(0.5, dtype))
    inner = ["i", "j"] if two else ["i"]
    ranges = (
        IndexRange(name="t", lower=affine(0), upper=affine(steps)),
        *(IndexRange(name=x, lower=affine(1), upper=affine(n - 1)) for x in inner),
    )
    order: list[int | str] = [m.position, "t", 0]
    for x in inner:
        order += [x, 0]
    m.position += 1
    m.features.add("stencil")
    at: list[IndexExpr] = [i, j] if two else [i]
    m.statement([], [(u, at)], [element], domain=Domain(ranges=ranges), order=tuple(order))


def jacobi(m: Maker) -> None:
    """Two tensors in turn: only time carries dependences."""
    n, steps = m.rng.choice([4, 6, 9, 13]), m.rng.choice([2, 3])
    dtype = m.rng.choice([DType.f32, DType.f64, DType.i64])
    a, b = (m.add([dim(n)], dtype, "inout") for _ in range(2))
    i = variable("i")
    domain = Domain(
        ranges=(
            IndexRange(name="t", lower=affine(0), upper=affine(steps)),
            IndexRange(name="i", lower=affine(1), upper=affine(n - 1)),
        )
    )

    def at(t: Known, shift: int) -> Expr:
        return Load(tensor=t.name, indices=(i + shift,), dtype=dtype)

    m.features.add("jacobi")
    position = m.position
    m.position += 1
    total = binary("add", at(a, -1), binary("add", at(a, 0), at(a, 1)))
    m.statement([], [(b, [i])], [total], domain=domain, order=(position, "t", 0))
    shift = m.rng.choice([0, 0, -1, 1])
    m.statement([], [(a, [i])], [at(b, shift)], domain=domain, order=(position, "t", 1))


def recurrence(m: Maker) -> None:
    """``h[t] = f(x[t], Σ_k w[j, k]·h[t-1, k])``; with one state vector, or all of them kept."""
    rng = m.rng
    steps, width = rng.choice([1, 2, 3, 5]), rng.choice([1, 3, 4, 8, 9])
    dtype = rng.choice([DType.f32, DType.f32, DType.f64, DType.i64])
    kept = rng.random() < 0.5
    dims = {"t": dim(steps), "j": dim(width), "k": dim(width)}
    t, j, k = map(variable, "tjk")
    x = m.add([dims["t"], dims["j"]], dtype, "input")
    w = m.add([dims["j"], dims["k"]], dtype, "parameter")
    position = m.position
    m.position += 1
    if kept:
        h = m.add([dims["t"], dims["j"]], dtype, "output", readable=False)
        g = m.add([dims["t"], dims["j"]], dtype, "temp", readable=False)
        past: Expr = m.guarded(h, [t - 1, k], (t - 1,))
        place: list[IndexExpr] = [t, j]
    else:
        h = m.add([dims["j"]], dtype, rng.choice(["inout", "state"]))
        g = m.add([dims["j"]], dtype, "temp", readable=False)
        past = Load(tensor=h.name, indices=(k,), dtype=dtype)
        place = [j]
    weight = Load(tensor=w.name, indices=(j, k), dtype=dtype)
    ranges = [(n, dims[n]) for n in "tjk"]
    m.features.add("recurrence")
    m.statement(
        ranges,
        [(g, place)],
        [binary("mul", past, weight)],
        order=(position, "t", 0),
        reduction=plain_reduction(sum_of(dtype), ["k"]),
    )
    given = Load(tensor=x.name, indices=(t, j), dtype=dtype)
    summed = Load(tensor=g.name, indices=tuple(place), dtype=dtype)  # type: ignore[arg-type]
    total: Expr = binary("add", given, summed)
    if dtype.is_float:
        total = unary("tanh", total)
    m.statement(ranges[:2], [(h, place)], [total], order=(position, "t", 1))
    if kept:
        h.readable = True


def reshaped(m: Maker) -> None:
    """A tensor read through an alias of another shape."""
    sources = [
        t
        for t in m.tensors
        if t.readable and t.role in ("temp", "output", "input") and not t.indexes
        and t.alias_of is None and all(d.is_const for d in t.dims)
    ]  # fmt: skip
    if not sources:
        pointwise(m)
        return
    t = m.rng.choice(sources)
    total = 1
    for d in t.dims:
        total *= d.value
    shapes = [[total], *([d, total // d] for d in (2, 3, 4) if total and total % d == 0)]
    dims = [dim(v) for v in m.rng.choice(shapes)]
    role = "temp" if t.role in ("temp", "output") else t.role
    m.add(dims, t.dtype, role, alias_of=t.name)
    m.features.add("alias")
    pointwise(m)


def softmax(m: Maker) -> None:
    """Row maximum, exponentials, sum, quotient."""
    rows, columns = m.dims(2, 300)
    dims = {"i": rows, "j": columns}
    source = convert(m.read(dims), F32)
    ranges = [("i", rows), ("j", columns)]
    i, j = variable("i"), variable("j")
    mx, ex = m.add([rows], F32, "temp"), m.add([rows, columns], F32, "temp")
    sm, out = m.add([rows], F32, "temp"), m.add([rows, columns], F32, "temp")

    def at(t: Known) -> Expr:
        return Load(tensor=t.name, indices=tuple([i, j][: len(t.dims)]), dtype=F32)

    m.features.add("softmax")
    m.statement(ranges, [(mx, [i])], [source], reduction=plain_reduction(max_of(F32), ["j"]))
    m.statement(ranges, [(ex, [i, j])], [unary("exp", binary("sub", source, at(mx)))])
    m.statement(ranges, [(sm, [i])], [at(ex)], reduction=plain_reduction(sum_of(F32), ["j"]))
    m.statement(ranges, [(out, [i, j])], [binary("div", at(ex), at(sm))])


def attention(m: Maker) -> None:
    """``Σ_k softmax(s[q, k])·v[k, d]`` in one pass; the maximum and the sum have no index d."""
    rows, keys, width = m.dims(3, 400)
    dims = {"q": rows, "k": keys, "d": width}
    dtype = m.rng.choice([F32, F32, DType.f64])
    scores = m.add([rows, keys], dtype, "input")
    values = m.add([keys, width], dtype, "input")
    q, k, d = map(variable, "qkd")
    score: Expr = Load(tensor=scores.name, indices=(q, k), dtype=dtype)
    if m.rng.random() < 0.5:
        score = binary("mul", score, const(0.5, dtype))
    value = Load(tensor=values.name, indices=(k, d), dtype=dtype)
    monoid = online_softmax_of(dtype)
    final = binary("div", Var(name="s2", dtype=dtype), Var(name="s1", dtype=dtype))
    m.features.add("attention")
    r = Reduction(
        indices=("k",),
        monoid=monoid,
        final=(final,),
        state_indices=m.rng.choice([None, (("q",), ("q",), None)]),
    )
    target = m.target(["q", "d"], dims, dtype)
    m.statement(
        [(n, dims[n]) for n in "qdk"], [target], [score, const(1, dtype), value], reduction=r
    )
