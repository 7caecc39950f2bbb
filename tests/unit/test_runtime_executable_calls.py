"""Executables: extern calls, parallel kernels, other threads meanwhile."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from nestor.errors import (
    Unsupported,
)
from nestor.runtime.dims import DimExpr
from nestor.runtime.executable import Executable
from nestor.runtime.manifest import (
    ExternCall,
    SymbolBinding,
)
from tests.helpers.native import (
    DOUBLE,
    PARALLEL_MARK,
    ModelMaker,
    pointwise,
)

N = DimExpr(0, (("N", 1),))


def with_extern():
    m = ModelMaker("sorting")
    x = m.slot("x", (N, 2), "input")
    a = m.slot("a", (N, 2), "temp")
    b = m.slot("b", (N, 2), "temp")
    y = m.slot("y", (N, 2), "output")
    text = pointwise(DOUBLE, "symbol").replace(
        "%n = load i64, ptr %symbols", "%s = load i64, ptr %symbols\n  %n = mul i64 %s, 2"
    )
    m.kernel(text, (x, a), (0,))
    m.calls.append(ExternCall(operator="sort", arguments=[0], inputs=(a,), outputs=(b,)))
    m.kernel(text, (b, y), (0,))
    symbols = (SymbolBinding(name="N", input=0, dimension=0),)
    return m.manifest([y], symbols=symbols), m.objects


def test_extern_calls_run_between_segments():
    seen = []

    def runner(call, inputs, outputs, symbols):
        seen.append((call.operator, call.arguments, dict(symbols)))
        outputs[0][...] = np.sort(inputs[0], axis=0)

    manifest, objects = with_extern()
    assert len(manifest.segments) == 2
    model = Executable(manifest, objects, extern_runner=runner)
    x = np.random.default_rng(0).random((5, 2), np.float32)
    np.testing.assert_array_equal(model(x), np.sort(2 * x, axis=0) * 2)
    assert seen == [("sort", [0], {"N": 5})]
    model.profile([x], repeats=1)
    assert len(seen) == 2


def test_extern_calls_without_a_runner_are_refused():
    with pytest.raises(Unsupported, match=r"calls PyTorch operators \(sort\)"):
        Executable(*with_extern())


def test_an_error_of_an_extern_call_leaves_the_model_usable():
    manifest, objects = with_extern()
    fail = [True]

    def runner(call, inputs, outputs, symbols):
        if fail:
            raise RuntimeError("from the operator")
        outputs[0][...] = inputs[0]

    model = Executable(manifest, objects, extern_runner=runner)
    x = np.ones((3, 2), np.float32)
    with pytest.raises(RuntimeError, match="from the operator"):
        model(x)
    fail.clear()
    assert (model(x) == 4).all()


def marks(threads: int | None) -> tuple[list[int], int]:
    m = ModelMaker("marks")
    a = m.slot("a", (8,), "output", "i64")
    n = m.slot("n", (1,), "output", "i64")
    m.kernel(PARALLEL_MARK, (a, n))
    model = Executable(m.manifest([a, n]), m.objects, threads=threads)
    places, team = model()
    return places.tolist(), int(team[0])


def test_parallel_kernels_use_the_threads_asked_for():
    places, team = marks(3)
    assert team == 3
    assert places[:3] == [1, 2, 3]
    places, team = marks(1)
    assert team == 1
    assert places[0] == 1


def test_threads_follow_torch():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert marks(None)[1] == 2
        torch.set_num_threads(1)
        assert marks(None)[1] == 1
    finally:
        torch.set_num_threads(before)


WAIT = """
; waits until tensor 0 holds something; gives up with status 1 after very many looks
define i32 @kernel(ptr %args, ptr %symbols, ptr %services) {
start:
  %p = load ptr, ptr %args
  br label %head
head:
  %i = phi i64 [ 0, %start ], [ %next, %head ]
  %v = load volatile i32, ptr %p
  %next = add i64 %i, 1
  %seen = icmp ne i32 %v, 0
  %tired = icmp sgt i64 %next, 20000000000
  %stop = or i1 %seen, %tired
  br i1 %stop, label %end, label %head
end:
  %r = zext i1 %tired to i32
  ret i32 %r
}"""


def test_other_threads_run_during_a_call():
    m = ModelMaker("wait")
    flag = m.slot("flag", (1,), "input", "i32")
    y = m.slot("y", (1,), "output")
    m.kernel(WAIT, (flag, y))
    model = Executable(m.manifest([y]), m.objects)
    value = np.zeros(1, np.int32)
    thread = threading.Thread(target=model, args=(value,))
    thread.start()
    value[0] = 1  # never reached if the call kept the interpreter's lock
    thread.join(20)
    assert not thread.is_alive()
