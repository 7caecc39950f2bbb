"""Shorthand for small LoopNests written by hand, and the check against the interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nestor.ir import numeric
from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Expr, IndexExpr, Load
from nestor.ir.loopnest import (
    Alloc,
    Block,
    Buffer,
    Compute,
    Loop,
    LoopKind,
    LoopNest,
    Node,
    Phase,
    Scope,
    Store,
)
from nestor.ir.monoid import Monoid
from nestor.ir.narrow_floats import MEMORY, round_to
from nestor.ir.nest_interpreter import run_nest
from nestor.ir.program import Layout, Role, Symbol, Tensor
from nestor.ir.types import DType
from nestor.target.cpu import CpuTarget, host_target, parse_target
from tests.helpers.llvm_native import NativeNest

F32 = DType.f32
LEVELS = ("avx2", "avx512") if host_target().vector_bits == 512 else ("avx2",)
"""Targets whose code this CPU can run."""

v = variable


def tensor(
    name: str,
    *shape: Affine | int | str,
    dtype: DType = F32,
    role: Role = "input",
    layout: Layout | None = None,
    alias_of: str | None = None,
) -> Tensor:
    return Tensor(
        name=name,
        shape=tuple(affine(s) for s in shape),
        dtype=dtype,
        role=role,
        layout=layout,
        alias_of=alias_of,
    )


def index(value: Affine | int | str | Expr) -> IndexExpr:
    return affine(value) if isinstance(value, (int, str, Affine)) else value


def load(
    name: str,
    *indices: Affine | int | str | Expr,
    dtype: DType = F32,
    predicate: Sequence[Affine] = (),
    other: Expr | None = None,
) -> Load:
    return Load(
        tensor=name,
        indices=tuple(index(i) for i in indices),
        dtype=dtype,
        predicate=tuple(predicate),
        other=other,
    )


def loop(
    name: str,
    extent: Affine | int | str,
    kind: LoopKind,
    *body: Node,
    lower: Affine | int | str = 0,
    also: Sequence[Affine] = (),
) -> Loop:
    return Loop(
        index=name,
        lower=(affine(lower),),
        upper=(affine(extent), *also),
        kind=kind,
        body=body[0] if len(body) == 1 else Block(body=body),
    )


def compute(
    phase: Phase,
    stores: Mapping[str, Sequence[Affine | int | str | Expr]],
    *values: Expr,
    monoid: Monoid | None = None,
) -> Compute:
    return Compute(
        statement="S",
        phase=phase,
        instance=(),
        stores=tuple(
            Store(target=t, indices=tuple(index(i) for i in at)) for t, at in stores.items()
        ),
        values=tuple(values),
        monoid=monoid,
    )


def point(target: str, at: Sequence[Affine | int | str | Expr], value: Expr) -> Compute:
    return compute("point", {target: at}, value)


def buffer(
    name: str, *shape: int, dtype: DType = F32, scope: Scope = "register", holds: str = "S#0"
) -> Buffer:
    return Buffer(
        name=name, dtype=dtype, shape=tuple(affine(s) for s in shape), scope=scope, holds=holds
    )


def alloc(buffers: Sequence[Buffer], *body: Node) -> Alloc:
    return Alloc(buffers=tuple(buffers), body=body[0] if len(body) == 1 else Block(body=body))


def nest(tensors: Sequence[Tensor], *body: Node, symbols: Sequence[Symbol] = ()) -> LoopNest:
    return LoopNest(
        name="nest",
        symbols=tuple(symbols),
        tensors=tuple(tensors),
        body=body[0] if len(body) == 1 else Block(body=body),
    )


def random_array(rng: np.random.Generator, t: Tensor, env: Mapping[str, int]) -> np.ndarray:
    """Inputs are random (small whole numbers for integers); outputs are garbage."""
    shape = tuple(int(s.evaluate(env)) for s in t.shape)
    if t.role in ("output", "temp"):
        return numeric.garbage(shape, t.dtype)
    if t.dtype.is_float:
        values = rng.standard_normal(shape).astype(np.float32)
        if t.dtype in MEMORY:
            return np.asarray(round_to(values, t.dtype), np.float32).reshape(shape)
        return values.astype(numeric.numpy_dtype(t.dtype))
    if t.dtype is DType.bool:
        return rng.random(shape) < 0.5
    return rng.integers(0, 4, shape).astype(numeric.numpy_dtype(t.dtype))


def check_nest_native(
    n: LoopNest,
    target: CpuTarget,
    *,
    symbols: Mapping[str, int] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    threads: Sequence[int] = (1, 2),
    rtol: float = 1e-5,
    atol: float = 1e-6,
    seed: int = 0,
) -> NativeNest:
    """Compile, run, and compare every tensor with what the interpreter makes of the same inputs."""
    rng = np.random.default_rng(seed)
    env = dict(symbols or {})
    given = dict(arrays or {})
    for t in n.tensors:
        if t.alias_of is None and t.name not in given:
            given[t.name] = random_array(rng, t, env)
    expected = {k: a.copy() for k, a in given.items()}
    run_nest(n, expected, env)
    native = NativeNest(n, target)
    for count in threads:
        got = {k: a.copy() for k, a in given.items()}
        code = native.run(got, env, threads=count)
        assert code == 0
        for t in n.tensors:
            if t.alias_of is None:
                want = expected[t.name]
                if want.dtype.kind == "f":
                    np.testing.assert_allclose(
                        got[t.name].astype(np.float64),
                        want.astype(np.float64),
                        rtol=rtol,
                        atol=atol,
                        err_msg=f"{t.name}, {count} threads",
                    )
                else:
                    np.testing.assert_array_equal(got[t.name], want, err_msg=t.name)
    return native


def check_on_both(n: LoopNest, **options: Any) -> None:
    """``check_nest_native`` for AVX2 and AVX-512; a CPU without AVX-512 checks AVX2 alone."""
    for name in LEVELS:
        check_nest_native(n, parse_target(name), **options)
