"""The Program interpreter against NumPy and PyTorch, vectorised and instance by instance."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from nestor.errors import IndexOutOfRange, InputError, IRError
from nestor.ir import vectorised
from nestor.ir.affine import affine
from nestor.ir.expr import Index, Load, const
from nestor.ir.interpreter import run_program
from nestor.ir.monoid import max_of, prod_of, sum_of, welford_of
from nestor.ir.narrow_floats import round_to
from nestor.ir.program import Domain, IndexRange, Program, box
from nestor.ir.types import DType
from tests.helpers import ir_programs as P

f32, i64 = DType.f32, DType.i64
MODES = pytest.mark.parametrize("exact", [False, True], ids=["vectorised", "exact"])


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


@MODES
def test_matmul(exact: bool) -> None:
    a, b = rand(5, 6), rand(6, 7)
    out = run_program(P.matmul(), {"A": a, "B": b}, exact=exact)
    assert list(out) == ["C"]
    np.testing.assert_allclose(out["C"], a @ b, rtol=1e-5, atol=1e-6)


def test_big_matmul_is_quick() -> None:
    a, b = rand(128, 384), rand(384, 1536)
    start = time.perf_counter()
    out = run_program(P.matmul(128, 1536, 384), {"A": a, "B": b})
    assert time.perf_counter() - start < 2.0
    np.testing.assert_allclose(out["C"], a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [DType.i8, DType.u8, DType.i32, DType.f64])
@MODES
def test_matmul_types(dtype: DType, exact: bool) -> None:
    kind = {DType.i8: np.int8, DType.u8: np.uint8, DType.i32: np.int32, DType.f64: np.float64}[
        dtype
    ]
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 100, (5, 6)).astype(kind), rng.integers(0, 100, (6, 7)).astype(kind)
    out = run_program(P.matmul(dtype=dtype), {"A": a, "B": b}, exact=exact)["C"]
    assert out.dtype == kind
    np.testing.assert_array_equal(out, (a.astype(np.int64) @ b.astype(np.int64)).astype(kind))


def test_matmul_of_huge_values_overflows_like_float32() -> None:
    a = np.full((5, 6), 1e30, np.float32)
    b = np.full((6, 7), 1e30, np.float32)
    b[:, 0] = -1e30
    out = run_program(P.matmul(), {"A": a, "B": b})["C"]
    assert np.all(out[:, 0] == -np.inf) and np.all(out[:, 1:] == np.inf)


@MODES
@pytest.mark.parametrize("stride,pad,k", [(1, 0, 3), (2, 1, 3), (1, 2, 5), (3, 1, 1)])
def test_conv2d(exact: bool, stride: int, pad: int, k: int) -> None:
    program = P.conv2d(n=1, o=3, c=2, size=5, k=k, stride=stride, pad=pad)
    x, w, b = rand(1, 2, 5, 5), rand(3, 2, k, k), rand(3)
    out = run_program(program, {"X": x, "W": w, "b": b}, exact=exact)["Y"]
    want = torch.nn.functional.conv2d(
        torch.tensor(x), torch.tensor(w), torch.tensor(b), stride=stride, padding=pad
    )
    np.testing.assert_allclose(out, want.numpy(), rtol=1e-5, atol=1e-5)


@MODES
def test_softmax_with_a_symbolic_batch(exact: bool) -> None:
    program = P.softmax("N", 9)
    for rows in (1, 4, 7):
        x = rand(rows, 9)
        out = run_program(program, {"X": x}, exact=exact)["Y"]
        np.testing.assert_allclose(out, torch.softmax(torch.tensor(x), 1).numpy(), rtol=1e-5)


@MODES
def test_argmax_ties_and_nan(exact: bool) -> None:
    x = rand(4, 9)
    x[0, :] = 2.0
    x[1, 3] = x[1, 6] = 50.0
    x[2, 4] = x[2, 7] = np.nan
    x[3, :] = -np.inf
    out = run_program(P.argmax(), {"X": x}, exact=exact)
    value, index = torch.max(torch.tensor(x), dim=1)
    np.testing.assert_array_equal(out["I"], index.numpy())
    np.testing.assert_array_equal(out["V"], value.numpy())


@MODES
def test_layer_norm_by_welford(exact: bool) -> None:
    x, g, b = rand(3, 20) + 100, rand(20), rand(20)
    out = run_program(P.layer_norm(), {"X": x, "g": g, "b": b}, exact=exact)["Y"]
    want = torch.nn.functional.layer_norm(
        torch.tensor(x).double(), (20,), torch.tensor(g).double(), torch.tensor(b).double()
    )
    np.testing.assert_allclose(out, want.numpy(), rtol=2e-4, atol=2e-4)


@MODES
def test_logsumexp_with_infinities(exact: bool) -> None:
    x = rand(3, 11) * 30
    x[1, :5] = -np.inf
    out = run_program(P.logsumexp(), {"X": x}, exact=exact)["Y"]
    np.testing.assert_allclose(out, torch.logsumexp(torch.tensor(x), 1).numpy(), rtol=1e-5)


@MODES
@pytest.mark.parametrize("causal", [False, True])
def test_online_softmax_attention(exact: bool, causal: bool) -> None:
    q, k, v = rand(5, 4), rand(6, 4), rand(6, 4, seed=3)
    program = P.attention(causal=causal)
    out = run_program(program, {"Q": q, "K": k, "V": v}, exact=exact)["O"]
    mask = torch.ones(5, 6, dtype=torch.bool).tril() if causal else None
    want = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q)[None], torch.tensor(k)[None], torch.tensor(v)[None], attn_mask=mask
    )
    np.testing.assert_allclose(out, want[0].numpy(), rtol=1e-5, atol=1e-6)


@MODES
@pytest.mark.parametrize("dtype", [f32, i64, DType.i8])
def test_cumsum(exact: bool, dtype: DType) -> None:
    kind = {f32: np.float32, i64: np.int64, DType.i8: np.int8}[dtype]
    x = (rand(3, 8) * 60).astype(kind)
    out = run_program(P.cumsum(dtype=dtype), {"X": x}, exact=exact)["Y"]
    np.testing.assert_allclose(out, np.cumsum(x, 1, dtype=kind), rtol=1e-5)


@MODES
def test_scan_of_a_tuple_state(exact: bool) -> None:
    program = P.program(
        "running_mean",
        [P.tensor("X", 2, 6), P.tensor("Y", 2, 6, role="output")],
        P.statement(
            "S",
            box(i=2, j=6),
            P.write("Y", "i", "j"),
            P.load("X", "i", "j"),
            const(0, f32),
            const(1, f32),
            reduction=P.reduce(welford_of(f32), "j", final=(P.s(0),), scan=True),
        ),
    )
    x = rand(2, 6)
    out = run_program(program, {"X": x}, exact=exact)["Y"]
    np.testing.assert_allclose(out, np.cumsum(x, 1) / np.arange(1, 7), rtol=1e-5, atol=1e-6)


@MODES
def test_embedding_and_its_range(exact: bool) -> None:
    e, t = rand(10, 4), np.array([3, 0, 9, 3, 1])
    out = run_program(P.embedding(), {"E": e, "T": t}, exact=exact)["Y"]
    np.testing.assert_array_equal(out, e[t])
    for bad in (10, -1):
        with pytest.raises(IndexOutOfRange, match=f"index {bad} of dimension 0 of E"):
            run_program(P.embedding(), {"E": e, "T": np.array([3, 0, bad, 3, 1])}, exact=exact)


@MODES
def test_scatter_add_keeps_what_is_there(exact: bool) -> None:
    t, x, y = np.array([1, 1, 3, 0, 1, 3, 3, 3]), rand(8, 3), rand(4, 3)
    out = run_program(P.scatter_add(), {"T": t, "X": x, "Y": y}, exact=exact)["Y"]
    want = torch.tensor(y).index_add(0, torch.tensor(t), torch.tensor(x))
    np.testing.assert_allclose(out, want.numpy(), rtol=1e-5, atol=1e-6)


@MODES
def test_the_last_write_of_a_scatter_wins(exact: bool) -> None:
    t, x, y = np.array([1, 1, 3, 0, 3, 1]), rand(6), rand(4)
    out = run_program(P.scatter_last(), {"T": t, "X": x, "Y": y}, exact=exact)["Y"]
    np.testing.assert_array_equal(out, np.array([x[3], x[5], y[2], x[4]]))


@MODES
def test_lstm_is_a_seq_region(exact: bool) -> None:
    torch.manual_seed(0)
    module = torch.nn.LSTM(3, 4)
    x = rand(6, 2, 3)
    weights = {k: v.detach().numpy() for k, v in module.named_parameters()}
    out = run_program(
        P.lstm(),
        {
            "X": x,
            "Wi": weights["weight_ih_l0"],
            "Wh": weights["weight_hh_l0"],
            "b": weights["bias_ih_l0"] + weights["bias_hh_l0"],
            "Cs": np.zeros((2, 4), np.float32),
            "Hs": np.zeros((2, 4), np.float32),
        },
        exact=exact,
    )
    y, (h, c) = module(torch.tensor(x))
    np.testing.assert_allclose(out["Y"], y.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out["Hs"], h[0].detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out["Cs"], c[0].detach().numpy(), rtol=1e-5, atol=1e-6)


@MODES
def test_triangular_solve(exact: bool) -> None:
    lower = np.tril(rand(5, 5)) + 3 * np.eye(5, dtype=np.float32)
    b = rand(5)
    out = run_program(P.triangular_solve(), {"L": lower, "b": b}, exact=exact)["x"]
    np.testing.assert_allclose(lower @ out, b, rtol=1e-4, atol=1e-5)


@MODES
@pytest.mark.parametrize("dtype", [DType.bf16, DType.f16])
def test_storage_types_round_once(exact: bool, dtype: DType) -> None:
    torch_dtype = torch.bfloat16 if dtype is DType.bf16 else torch.float16
    x = torch.tensor(rand(8) * 7).to(torch_dtype)
    x[0], x[1] = float("nan"), float("inf")
    given = x.float().numpy() if dtype is DType.bf16 else x.numpy()
    out = run_program(P.half_relu(dtype=dtype), {"X": given}, exact=exact)["Y"]
    want = torch.where(x.float() > 0, x.float() * 3, x.float()).to(torch_dtype).float().numpy()
    np.testing.assert_array_equal(out.astype(np.float32), want)


@MODES
def test_max_pool_pads_with_minus_infinity(exact: bool) -> None:
    h = affine("y") * 2 + "r" - 1
    padded = P.load("X", "c", h, predicate=(h, affine(6) - h), other=const(-np.inf, f32))
    program = P.program(
        "pool",
        [P.tensor("X", 2, 7), P.tensor("Y", 2, 4, role="output")],
        P.statement(
            "S",
            box(c=2, y=4, r=3),
            P.write("Y", "c", "y"),
            padded,
            reduction=P.reduce(max_of(f32), "r"),
        ),
    )
    x = rand(2, 7)
    out = run_program(program, {"X": x}, exact=exact)["Y"]
    want = torch.nn.functional.max_pool1d(torch.tensor(x), 3, stride=2, padding=1)
    np.testing.assert_array_equal(out, want.numpy())


@MODES
def test_views_flatten_and_split_by_affine_maps(exact: bool) -> None:
    flat = affine("p")
    program = P.program(
        "view",
        [P.tensor("X", 4, 6), P.tensor("Y", 3, 8, role="output")],
        P.statement(
            "S",
            box(i=3, j=8),
            P.write("Y", "i", "j"),
            P.load("X", (affine("i") * 8 + "j") // 6, (affine("i") * 8 + "j") % 6),
        ),
    )
    x = rand(4, 6)
    assert flat.variables() == {"p"}
    out = run_program(program, {"X": x}, exact=exact)["Y"]
    np.testing.assert_array_equal(out, x.reshape(3, 8))


@MODES
def test_alias_shares_the_bytes(exact: bool) -> None:
    n = affine("N")
    program = P.program(
        "alias",
        [
            P.tensor("X", n, 6),
            P.tensor("T", n, 6, role="temp"),
            P.tensor("V", n * 2, 3, role="temp", alias_of="T"),
            P.tensor("Y", n * 2, role="output"),
        ],
        P.statement("C", box(i="N", j=6), P.write("T", "i", "j"), P.load("X", "i", "j")),
        P.statement(
            "S",
            box(i=n * 2, j=3),
            P.write("Y", "i"),
            P.load("V", "i", "j"),
            reduction=P.reduce(sum_of(f32), "j"),
            order=(1,),
        ),
        symbols=(P.Symbol(name="N"),),
    )
    x = rand(4, 6)
    out = run_program(program, {"X": x}, exact=exact)["Y"]
    np.testing.assert_allclose(out, x.reshape(8, 3).sum(1), rtol=1e-5)


@MODES
def test_empty_reduction_is_the_identity(exact: bool) -> None:
    out = run_program(
        P.matmul(2, 3, 0),
        {"A": np.zeros((2, 0), np.float32), "B": np.zeros((0, 3), np.float32)},
        exact=exact,
    )
    np.testing.assert_array_equal(out["C"], np.zeros((2, 3), np.float32))


@MODES
def test_empty_rows(exact: bool) -> None:
    out = run_program(P.softmax(0, 4), {"X": np.zeros((0, 4), np.float32)}, exact=exact)
    assert out["Y"].shape == (0, 4)


@MODES
def test_constraints_and_dependent_ranges(exact: bool) -> None:
    """Rows of a triangle whose empty ones still get the identity."""
    domain = Domain(
        ranges=(
            IndexRange(name="i", lower=affine(1), upper=affine(6)),
            IndexRange(name="k", lower=affine(0), upper=affine("i")),
        ),
        constraints=(affine("k") - 2, affine("i") - 2),
    )
    program = P.program(
        "triangle",
        [P.tensor("X", 6), P.tensor("Y", 6, role="inout")],
        P.statement(
            "S",
            domain,
            P.write("Y", "i"),
            P.load("X", "k"),
            reduction=P.reduce(prod_of(f32), "k"),
        ),
    )
    x, y = rand(6), np.full(6, 9, np.float32)
    out = run_program(program, {"X": x, "Y": y}, exact=exact)["Y"]
    want = [9, 9, 1, x[2], x[2] * x[3], x[2] * x[3] * x[4]]
    np.testing.assert_allclose(out, np.array(want, np.float32), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(P.ALL))
def test_tiny_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = P.ALL[name]()
    inputs = example_inputs(program)
    want = run_program(program, inputs, keep_temps=True)
    monkeypatch.setattr(vectorised, "MAX_CELLS", 5)
    got = run_program(program, inputs, keep_temps=True)
    exact = run_program(program, inputs, keep_temps=True, exact=True)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got[key], exact[key], rtol=1e-4, atol=1e-5)


def example_inputs(program: Program) -> dict[str, np.ndarray]:
    out = {}
    for t in program.tensors:
        if t.role in ("output", "temp"):
            continue
        shape = tuple(int(d.evaluate({})) for d in t.shape)
        data = rand(*shape)
        out[t.name] = np.abs(data * 3).astype(np.int64) % 4 if t.dtype is i64 else data
        if t.name == "L":
            out[t.name] = data + 4 * np.eye(len(data), dtype=np.float32)
    return out


def test_inputs_are_never_modified() -> None:
    t, x, y = np.array([0] * 8), rand(8, 3), rand(4, 3)
    before = y.copy()
    run_program(P.scatter_add(), {"T": t, "X": x, "Y": y})
    np.testing.assert_array_equal(y, before)


def test_what_nothing_wrote_is_garbage() -> None:
    program = P.program(
        "hole",
        [P.tensor("X", 4), P.tensor("Y", 6, role="output")],
        P.statement("S", box(i=4), P.write("Y", "i"), P.load("X", "i")),
    )
    out = run_program(program, {"X": rand(4)})["Y"]
    assert np.isnan(out[4:]).all() and not np.isnan(out[:4]).any()


@MODES
def test_a_padding_load_reads_nothing_outside(exact: bool) -> None:
    x = rand(4)
    program = P.program(
        "outside",
        [P.tensor("X", 4), P.tensor("Y", 5, role="output")],
        P.statement("S", box(i=5), P.write("Y", "i"), P.load("X", "i")),
    )
    with pytest.raises(IRError, match="index 4 of dimension 0 of X is outside"):
        run_program(program, {"X": x}, exact=exact)


@MODES
def test_index_values_wrap_to_their_type(exact: bool) -> None:
    program = P.program(
        "iota",
        [P.tensor("Y", 300, dtype=DType.u8, role="output")],
        P.statement("S", box(i=300), P.write("Y", "i"), Index(value=affine("i"), dtype=DType.u8)),
    )
    out = run_program(program, {}, exact=exact)["Y"]
    np.testing.assert_array_equal(out, np.arange(300).astype(np.uint8))


def test_symbols_are_solved_and_checked() -> None:
    program = P.program(
        "sym",
        [P.tensor("X", affine("N") * 2 + 1), P.tensor("Y", "N", role="output")],
        P.statement("S", box(i="N"), P.write("Y", "i"), P.load("X", affine("i") * 2)),
        symbols=(P.Symbol(name="N", lower=2, upper=4),),
    )
    assert run_program(program, {"X": rand(7)})["Y"].shape == (3,)
    with pytest.raises(InputError, match=r"size 8 in dimension 0, which is never 2\*N \+ 1"):
        run_program(program, {"X": rand(8)})
    with pytest.raises(InputError, match="N = 5, but 2 ≤ N ≤ 4"):
        run_program(program, {"X": rand(11)})
    with pytest.raises(InputError, match="input X is float64, not float32"):
        run_program(program, {"X": np.zeros(7)})
    with pytest.raises(InputError, match="has size 7 in dimension 0, not 2"):
        run_program(program, {"X": rand(7)}, {"N": 4})
    with pytest.raises(InputError, match="input X is missing"):
        run_program(program, {})


def test_bf16_rounds_to_nearest_even() -> None:
    x = np.concatenate([rand(1000) * 100, [np.inf, -np.inf, 3.4e38, 1e-40, -0.0]]).astype(
        np.float32
    )
    want = torch.tensor(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(round_to(x, DType.bf16), want)
    assert np.isnan(round_to(np.float32(np.nan), DType.bf16))


def test_load_wants_predicate_and_other_together() -> None:
    with pytest.raises(ValueError, match="both a predicate and an other"):
        Load(tensor="X", indices=(affine(0),), dtype=f32, predicate=(affine("i"),))
