"""Executables: outputs, strides, symbols, state, many threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from nestor.errors import (
    IndexOutOfRange,
    InputError,
    InternalError,
)
from nestor.runtime.dims import DimExpr
from nestor.runtime.elf import load_object
from nestor.runtime.executable import Executable
from nestor.runtime.manifest import (
    InputSpec,
    Mutation,
    OutputSpec,
    SymbolBinding,
    WeightSource,
)
from nestor.runtime.structure import flatten, flatten_call
from tests.helpers.executables import expected, make_chain
from tests.helpers.native import (
    ADD,
    DOUBLE,
    FAIL,
    INCREMENT,
    ModelMaker,
    compile_text,
    pointwise,
)

N = DimExpr(0, (("N", 1),))


def test_numpy_in_numpy_out():
    model, w = make_chain()
    x = np.random.default_rng(0).random((4, 8), np.float32)
    y = model(x)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, expected(x, w))
    again = model(x + 1)
    assert again is not y
    np.testing.assert_array_equal(y, expected(x, w))


def test_torch_in_torch_out_and_mixed_weights():
    model, w = make_chain()
    x = torch.rand(4, 8)
    y = model(x)
    assert type(y) is torch.Tensor
    assert y.stride() == (8, 1)
    assert torch.equal(y, expected(x, torch.from_numpy(w)))
    model, _ = make_chain(torch.nn.Parameter(torch.from_numpy(w)))
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("make", ["transposed", "sliced", "negative", "expanded", "fortran"])
def test_any_strides(make):
    model, w = make_chain()
    base = np.random.default_rng(1).random((8, 16), np.float32)
    x = {
        "transposed": base[:, :4].T,
        "sliced": base[1:5, 3:11],
        "negative": base[4:0:-1, 8:0:-1],
        "expanded": np.broadcast_to(base[0, :8], (4, 8)),
        "fortran": np.asfortranarray(base[:4, :8]),
    }[make]
    np.testing.assert_array_equal(model(x), expected(x, w))
    if make != "negative":
        t = torch.from_numpy(base)
        tensors = {
            "transposed": t[:, :4].T, "sliced": t[1:5, 3:11], "expanded": t[0, :8].expand(4, 8),
            "fortran": t[:4, :8].t().contiguous().t(),
        }  # fmt: skip
        assert torch.equal(model(tensors[make]), torch.from_numpy(expected(x, w)))


def test_unaligned_and_byteswapped_numpy():
    model, w = make_chain()
    raw = np.zeros(4 * 32 + 1, np.uint8)[1:].view(np.float32).reshape(4, 8)
    assert not raw.flags.aligned
    np.testing.assert_array_equal(model(raw), expected(raw, w))
    with pytest.raises(InputError, match="dtype >f4"):
        model(np.zeros((4, 8), ">f4"))


def test_gradients_and_negated_views_are_read_right():
    model, w = make_chain()
    x = torch.rand(4, 8, requires_grad=True)
    assert torch.equal(model(x), expected(x, torch.from_numpy(w)).detach())
    negated = torch.complex(torch.rand(4, 8), torch.rand(4, 8)).conj().imag
    assert negated.is_neg()
    assert torch.equal(model(negated), expected(negated, torch.from_numpy(w)))


def dynamic() -> Executable:
    """y[2N+1, 3] = 2·x, for x of (2N+1, 3)."""
    m = ModelMaker("dynamic")
    size = DimExpr(1, (("N", 2),))
    x = m.slot("x", (size, 3), "input")
    t = m.slot("t", (size, 3), "temp")
    y = m.slot("y", (size, 3), "output")
    text = pointwise(DOUBLE, "symbol").replace(
        "%n = load i64, ptr %symbols",
        "%s = load i64, ptr %symbols\n  %s2 = mul i64 %s, 6\n  %n = add i64 %s2, 3",
    )
    m.kernel(text, (x, t), (0,))
    m.kernel(text.replace("fadd float %x0, %x0", "fadd float %x0, 1.0"), (t, y), (0,))
    outputs = [y, OutputSpec(kind="integer", value=size)]
    symbols = (SymbolBinding(name="N", input=0, dimension=0, lower=2, upper=50),)
    return Executable(m.manifest(outputs, symbols=symbols), m.objects)


def test_symbols_are_read_from_shapes():
    model = dynamic()
    for n in (2, 50, 7, 2, 33):
        x = np.random.default_rng(n).random((2 * n + 1, 3), np.float32)
        y, size = model(x)
        assert size == 2 * n + 1
        np.testing.assert_array_equal(y, 2 * x + 1)
    assert model.memory()["arena"] == 1216
    assert len(model._frames) == 1


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 102, 103])
def test_symbols_out_of_range_or_unsolvable(rows):
    with pytest.raises(InputError, match=r"expected \(2\*N \+ 1, 3\) with 2 ≤ N ≤ 50"):
        dynamic()(np.zeros((rows, 3), np.float32))


def test_many_shapes_do_not_pile_up():
    from nestor.runtime import calls

    model = dynamic()
    calls.MAX_PLANS, saved = 8, calls.MAX_PLANS
    try:
        for n in range(2, 40):
            model(np.zeros((2 * n + 1, 3), np.float32))
        assert len(model._plans) <= 8
    finally:
        calls.MAX_PLANS = saved


def test_outputs_have_the_stride_order_of_eager():
    m = ModelMaker()
    x = m.slot("x", (2, 3, 4, 5), "input", permutation=(0, 2, 3, 1))
    y = m.slot("y", (2, 3, 4, 5), "output", permutation=(0, 2, 3, 1))
    m.kernel(pointwise(DOUBLE, "120"), (x, y))
    model = Executable(m.manifest([y]), m.objects)
    given = torch.rand(2, 3, 4, 5)
    for t in (given, given.contiguous(memory_format=torch.channels_last)):
        out = model(t)
        assert out.stride() == (60, 1, 15, 3)
        assert torch.equal(out, 2 * t)
        array = model(t.numpy())
        assert array.strides == (240, 4, 60, 12)
        np.testing.assert_array_equal(array, 2 * t.numpy())


def test_outputs_that_are_views_inputs_and_constants():
    m = ModelMaker()
    x = m.slot("x", (2, 3), "input")
    y = m.slot("y", (2, 3), "output")
    flat = m.slot("flat", (6,), "output", alias_of=y)
    t = m.slot("t", (2, 3), "temp")
    m.kernel(pointwise(DOUBLE, "6"), (x, y))
    m.kernel(pointwise(INCREMENT, "6"), (y, t))
    model = Executable(
        m.manifest(
            [
                y, flat, t, OutputSpec(slot=y, shape=(3, 4), strides=(1, 0), offset=3),
                OutputSpec(kind="input", input=0), OutputSpec(kind="constant", constant="s"), y,
                OutputSpec(slot=x, shape=(3, 2), strides=(1, 3)),
            ]
        ),
        m.objects,
    )  # fmt: skip
    for given in (torch.rand(2, 3), np.random.default_rng(0).random((2, 3), np.float32)):
        a, b, c, d, e, f, g, h = model(given)
        array = np.asarray(given)
        np.testing.assert_array_equal(a, 2 * array)
        np.testing.assert_array_equal(b, 2 * array.reshape(6))
        np.testing.assert_array_equal(c, 2 * array + 1)
        np.testing.assert_array_equal(d, np.repeat(2 * array[1][:, None], 4, axis=1))
        np.testing.assert_array_equal(h, array.T)
        assert e is given
        assert f == "s"
        assert g is a
        a[:] = 5
        assert (np.asarray(b) == 5).all()


def test_nested_structures_and_named_arguments():
    m = ModelMaker()
    x = m.slot("x", (3,), "input")
    z = m.slot("z", (3,), "input")
    y = m.slot("y", (3,), "output")
    m.kernel(pointwise(ADD, "3", 2), (x, z, y))
    tree, _ = flatten_call(({"x": 1},), {"z": [2], "flag": None})
    out_tree, _ = flatten({"sum": (1, [2]), 3: None})
    manifest = m.manifest(
        [y, OutputSpec(kind="constant", constant=7), OutputSpec(kind="constant")],
        inputs=(
            InputSpec(name="x", slot=x), InputSpec(name="z", slot=z),
            InputSpec(name="flag", kind="constant"),
        ),
        input_tree=tree, output_tree=out_tree, argument_names=("features",),
    )  # fmt: skip
    model = Executable(manifest, m.objects)
    a, b = np.ones(3, np.float32), np.full(3, 2, np.float32)
    for out in (
        model({"x": a}, z=[b], flag=None),
        model(features={"x": a}, z=(b,)),
    ):
        assert list(out) == ["sum", 3]
        np.testing.assert_array_equal(out["sum"][0], [3, 3, 3])
        assert out["sum"][1] == [7]
    for bad, message in [
        (lambda: model({"x": a}), "argument 'z' is missing; it takes"),
        (lambda: model({"x": a}, z=[b], q=1), "argument 'q' is not one"),
        (lambda: model({"x": a}, {"x": a}, z=[b]), "2 positional arguments"),
        (lambda: model({"y": a}, z=[b]), r"features: no entry 'x'"),
        (lambda: model({"x": a, "y": a}, z=[b]), "entry 'y' was not there"),
        (lambda: model({"x": a}, z=[b, b]), "z: a sequence of 1 expected, got 2"),
        (lambda: model({"x": a}, features={"x": a}, z=[b]), "given twice"),
        (lambda: model({"x": a}, z=[b], flag=3), "input 'flag': 3, but the model was compiled"),
    ]:
        with pytest.raises(InputError, match=message):
            bad()
    assert model.accepts({"x": a}, z=[b])
    assert not model.accepts({"x": a}, z=[b], q=1)
    assert not model.accepts({"x": a}, z=[np.zeros(4, np.float32)])


def test_index_out_of_range_names_the_kernel():
    m = ModelMaker("lookup")
    x = m.slot("x", (3,), "input")
    y = m.slot("y", (3,), "output")
    m.kernel(pointwise(DOUBLE, "3"), (x, y), name="first")
    m.kernel(FAIL, (x, y), name="second", origin="aten.embedding at model.py:12")
    m.kernel(FAIL, (x, y), name="third")
    model = Executable(m.manifest([y]), m.objects)
    for _ in range(2):
        with pytest.raises(IndexOutOfRange, match=r"in aten\.embedding at model\.py:12"):
            model(np.zeros(3, np.float32))


def test_swapping_a_kernel_takes_effect_at_the_next_call():
    model, w = make_chain()
    x = np.zeros((4, 8), np.float32)
    np.testing.assert_array_equal(model(x), 2 + w)
    other = load_object(compile_text(pointwise("  %y = fadd float %x0, 10.0", "32")))
    model.swap_kernel(0, other.address("kernel"), other)
    del other
    np.testing.assert_array_equal(model(x), 20 + w)
    with pytest.raises(IndexError):
        model.swap_kernel(3, 1234)


def test_profile_names_each_kernel():
    model, _ = make_chain()
    times = model.profile([np.zeros((4, 8), np.float32)])
    assert [n for n, _ in times] == ["increment", "double", "add"]
    assert all(0 < t < 1 for _, t in times)


def counter(live) -> Executable:
    """y = state; state += 1 (through a temp)."""
    m = ModelMaker("counter")
    s = m.slot("s", (4,), "state")
    t = m.slot("t", (4,), "temp")
    y = m.slot("y", (4,), "output")
    m.kernel(pointwise("  %y = fadd float %x0, 0.0", "4"), (s, y))
    m.kernel(pointwise(INCREMENT, "4"), (s, t))
    manifest = m.manifest(
        [y], weights=(WeightSource(slot=s, key="s", how="state"),),
        mutations=(Mutation(source=t, target=s),),
    )  # fmt: skip
    return Executable(manifest, m.objects, {"s": live}, prefer="torch")


def test_state_is_written_back_to_the_live_tensor():
    live = torch.zeros(4)
    version = live._version
    model = counter(live)
    assert [model()[0].item() for _ in range(3)] == [0, 1, 2]
    assert live.tolist() == [3, 3, 3, 3]
    assert live._version > version
    live.fill_(10)
    assert model()[0].item() == 10


def test_state_of_any_strides_is_written_back():
    base = torch.zeros(4, 3)
    model = counter(base[:, 1])
    assert [model()[0].item() for _ in range(2)] == [0, 1]
    assert base[:, 1].tolist() == [2, 2, 2, 2]
    assert base[:, 0].tolist() == [0, 0, 0, 0]
    base[:, 1] = 7
    assert model()[0].item() == 7


def test_state_of_an_artifact_is_kept_inside():
    initial = np.zeros(4, np.float32)
    initial.flags.writeable = False
    model = counter(initial)
    assert [model()[0].item() for _ in range(3)] == [0, 1, 2]
    assert (initial == 0).all()


def test_state_counts_every_call_of_many_threads():
    live = torch.zeros(4)
    model = counter(live)
    seen: list[float] = []
    run_threads(4, lambda _: seen.extend(model()[0].item() for _ in range(50)))
    assert sorted(seen) == list(range(200))


def swapper() -> tuple[Executable, torch.Tensor, torch.Tensor]:
    m = ModelMaker("swap")
    a = m.slot("a", (4,), "state")
    b = m.slot("b", (4,), "state")
    y = m.slot("y", (4,), "output")
    m.kernel(pointwise(ADD, "4", 2), (a, b, y))
    manifest = m.manifest(
        [y],
        weights=(
            WeightSource(slot=a, key="a", how="state"), WeightSource(slot=b, key="b", how="state"),
        ),
        mutations=(Mutation(source=b, target=a), Mutation(source=a, target=b)),
    )  # fmt: skip
    one, two = torch.full((4,), 1.0), torch.full((4,), 2.0)
    return Executable(manifest, m.objects, {"a": one, "b": two}), one, two


def test_states_that_swap():
    model, one, two = swapper()
    model()
    assert (one[0].item(), two[0].item()) == (2, 1)


def overwriting() -> Executable:
    m = ModelMaker("inplace")
    x = m.slot("x", (4,), "inout")
    z = m.slot("z", (4,), "input")
    t = m.slot("t", (4,), "temp")
    y = m.slot("y", (4,), "output")
    m.kernel(pointwise(ADD, "4", 2), (x, z, t))
    m.kernel(pointwise(DOUBLE, "4"), (t, y))
    return Executable(m.manifest([y], mutations=(Mutation(source=t, target=x),)), m.objects)


def test_overwritten_inputs():
    model = overwriting()
    x, z = torch.ones(4), torch.full((4,), 2.0)
    version = x._version
    assert model(x, z).tolist() == [6] * 4
    assert x.tolist() == [3] * 4
    assert x._version > version
    strided = torch.ones(8)[::2]
    model(strided, z)
    assert strided.tolist() == [3] * 4
    array = np.ones(8, np.float32)[::2]
    model(array, np.full(4, 2, np.float32))
    assert array.tolist() == [3] * 4


def test_overwritten_inputs_that_cannot_be():
    model = overwriting()
    z = torch.ones(4)
    with pytest.raises(InputError, match="'x' is overwritten by the model and shares memory with"):
        model(z, z)
    with pytest.raises(InputError, match="read-only or has several indices"):
        model(torch.ones(1).expand(4), z)
    fixed = np.ones(4, np.float32)
    fixed.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        model(fixed, np.ones(4, np.float32))
    base = torch.ones(9)
    with pytest.raises(InputError, match="shares memory"):
        model(base[1:5], base[4:8])
    model(base[1:5], base[5:9])


def run_threads(count, work) -> None:
    failures: list[BaseException] = []

    def guarded(n: int) -> None:
        try:
            work(n)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_many_threads_call_one_model():
    model, w = make_chain()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            x = rng.random((4, 8), np.float32)
            np.testing.assert_array_equal(model(x), expected(x, w))

    run_threads(4, work)
    assert len(model._frames) <= 4
    model.trim()
    assert not model._frames


def test_many_threads_with_many_shapes():
    model = dynamic()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            x = rng.random((2 * int(rng.integers(2, 50)) + 1, 3), np.float32)
            np.testing.assert_array_equal(model(x)[0], 2 * x + 1)

    run_threads(4, work)


def test_bfloat16_and_bool():
    m = ModelMaker()
    x = m.slot("x", (3,), "input", "bf16")
    y = m.slot("y", (3,), "output", "bf16")
    copy = pointwise("  %y = fadd float %x0, 0.0", "3").replace("float", "i16")
    copy = copy.replace("fadd i16 %x0, 0.0", "add i16 %x0, 0").replace("align 4", "align 2")
    m.kernel(copy, (x, y))
    model = Executable(m.manifest([y]), m.objects)
    t = torch.tensor([1.5, -2.0, float("nan")]).bfloat16()
    assert torch.equal(model(t).view(torch.int16), t.view(torch.int16))
    bits = t.view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(model(bits), bits)


def test_empty_tensors():
    m = ModelMaker()
    x = m.slot("x", (0, 3), "input")
    t = m.slot("t", (0, 3), "temp")
    y = m.slot("y", (0, 3), "output")
    m.kernel(pointwise(DOUBLE, "0"), (x, t))
    m.kernel(pointwise(DOUBLE, "0"), (t, y))
    model = Executable(m.manifest([y]), m.objects)
    assert model(torch.zeros(0, 3)).shape == (0, 3)
    assert model(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_alias_that_is_larger_than_its_memory():
    m = ModelMaker()
    x = m.slot("x", (3,), "input")
    wide = m.slot("wide", (4,), "input", alias_of=x)
    y = m.slot("y", (4,), "output")
    m.kernel(pointwise(DOUBLE, "4"), (wide, y))
    with pytest.raises(InternalError, match="'wide' \\(16 bytes\\) is an alias of the smaller 'x'"):
        Executable(m.manifest([y]), m.objects)(np.zeros(3, np.float32))


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_in_one_arena(seed):
    """Temps of many sizes and lifetimes, aliases, outputs in the middle: every value is right."""
    rng = np.random.default_rng(seed)
    m = ModelMaker("graph")
    sizes = [64, 100, 257]
    values: dict[int, np.ndarray] = {}
    inputs = []
    for size in sizes:
        slot = m.slot(f"x{size}", (size,), "input")
        values[slot] = rng.integers(-8, 8, size).astype(np.float32)
        inputs.append(values[slot])
    outputs = []
    for step in range(40):
        size = sizes[rng.integers(3)]
        known = [s for s in values if values[s].size == size]
        a, b = (int(known[i]) for i in rng.integers(len(known), size=2))
        kind = rng.integers(10)
        role = "output" if kind == 0 or step == 39 else "temp"
        slot = m.slot(f"t{step}", (size,), role)
        body = ADD.replace("fadd", "fsub") if kind < 5 else ADD
        m.kernel(pointwise(body, str(size), 2), (a, b, slot))
        values[slot] = values[a] - values[b] if kind < 5 else values[a] + values[b]
        if role == "output" or kind == 9:
            outputs.append(slot)
        if kind == 8:
            alias = m.slot(f"v{step}", (size, 1), role, alias_of=slot)
            values[alias] = values[slot]
    model = Executable(m.manifest([*outputs, OutputSpec(slot=outputs[0])]), m.objects)
    for _ in range(2):
        found = model(*inputs)
        for slot, array in zip(outputs, found, strict=False):
            np.testing.assert_array_equal(array.ravel(), values[slot])
    memory = model.memory()
    assert memory["arena"] <= 1.3 * memory["arena_lower_bound"]
