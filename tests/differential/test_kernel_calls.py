"""Calls of loop kernels: libraries, strides, types, caches, threads, large sizes, reassociation."""
# ruff: noqa: F821, UP037

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

import nestor
from nestor.kernel_native import NativeKernel, Prepared
from tests.helpers.kernel_zoo import cholesky, gram_schmidt


def f64(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@nestor.kernel
def scaled_sum(a: nestor.f64, x: nestor.f64["N", "M"], y: nestor.f64["N"], n: int = 3):
    for i in range(N):
        for j in range(M):
            y[i] += a * x[i, j]
        y[i] += n


def expected(a: float, x: np.ndarray, y: np.ndarray, n: int = 3) -> np.ndarray:
    return y + a * x.sum(1) + n


def test_numpy_and_torch_in_place() -> None:
    x, y = f64(4, 5), f64(4)
    want = expected(2.0, x, y)
    t = torch.from_numpy(y.copy())
    version = t._version
    scaled_sum(2.0, torch.from_numpy(x), t)
    scaled_sum(2.0, x, y)
    np.testing.assert_allclose(y, want, rtol=1e-14)
    np.testing.assert_array_equal(t.numpy(), y)
    assert t._version > version


def test_keywords_and_defaults() -> None:
    x, y = f64(4, 5), f64(4)
    want = expected(0.5, x, y, 9)
    scaled_sum(n=9, a=np.float32(0.5), y=y, x=x)
    np.testing.assert_allclose(y, want, rtol=1e-14)


def test_strided_arguments_are_written_back() -> None:
    x, whole = f64(5, 4).T, f64(9)
    want = whole.copy()
    want[::-2][:4] = expected(1.5, x, whole[::-2][:4])
    scaled_sum(1.5, x, whole[::-2][:4])
    np.testing.assert_allclose(whole, want, rtol=1e-14)
    t = torch.from_numpy(f64(4, 6))
    column = expected(1.5, x, t[:, 2].numpy())
    scaled_sum(1.5, torch.from_numpy(np.ascontiguousarray(x)), t[:, 2])
    np.testing.assert_allclose(t[:, 2].numpy(), column, rtol=1e-14)


def test_a_tensor_that_requires_a_gradient_is_refused() -> None:
    y = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(nestor.InputError, match="requires a gradient"):
        scaled_sum(1.0, f64(4, 2), y)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_empty_and_single_sizes(shape: tuple[int, int]) -> None:
    x, y = f64(*shape), f64(shape[0])
    want = expected(2.0, x, y)
    scaled_sum(2.0, x, y)
    np.testing.assert_allclose(y, want, rtol=1e-14)


@nestor.kernel(contract=False)
def halves(x: nestor.f16["N"], b: nestor.bf16["N"], k: nestor.i8["N"], u: nestor.u8["N"]):
    for i in range(N):
        x[i] = x[i] * 3.0 + k[i]
        b[i] += x[i] * 0.5
        k[i] += 100
        u[i] = u[i] * 7 + (1 if x[i] > 0.0 else 2)


def test_small_types_wrap_and_round_as_the_interpreter_says() -> None:
    def make() -> tuple[Any, ...]:
        rng = np.random.default_rng(3)
        return (
            torch.from_numpy(rng.standard_normal(33).astype(np.float16)),
            torch.from_numpy(rng.standard_normal(33)).to(torch.bfloat16),
            torch.from_numpy(rng.integers(-128, 128, 33).astype(np.int8)),
            torch.from_numpy(rng.integers(0, 256, 33).astype(np.uint8)),
        )

    native, interpreted = make(), make()
    halves(*native)
    halves.interpret(*interpreted)
    for a, b in zip(native, interpreted):
        assert torch.equal(a, b)


@nestor.kernel
def touch_ends(A: nestor.u8["N"]):
    A[0] = 1
    A[N - 1] = 2
    for i in range(N // 2, N // 2 + 3):
        A[i] = 3


def test_more_elements_than_32_bits_count() -> None:
    size = 2**32 + 5
    array = np.zeros(size, np.uint8)  # untouched pages take no memory
    touch_ends(array)
    at = [0, size // 2, size // 2 + 2, size - 1]
    assert array[at].tolist() == [1, 3, 3, 2]
    assert array[size - 2] == 0 and array[size - 1 - 2**32] == 0


def test_compiled_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    init = NativeKernel.__init__

    def counting(self: NativeKernel, prepared: Prepared, *rest: Any) -> None:
        made.append(prepared.program.name)
        init(self, prepared, *rest)

    monkeypatch.setattr(NativeKernel, "__init__", counting)

    def again() -> nestor.Kernel:
        @nestor.kernel
        def once(x: nestor.f64["N"]):
            for i in range(N):
                x[i] = x[i] * 3.0

        return once

    first = again()
    for size in (1, 2, 50):
        x = f64(size)
        want = x * 3.0
        first(x)
        np.testing.assert_array_equal(x, want)
    assert made == ["once"]
    second = again()
    second(f64(3))
    assert second.report().cache_hits == 1  # from the disk
    report = second.report()
    assert "x[i] = x[i] * 3.0" in report.kernels[0].origins[0] and str(report)


def test_calls_from_many_threads() -> None:
    results: list[bool] = []

    def work(seed: int) -> None:
        for _ in range(20):
            x, y = f64(6, 7, seed=seed), f64(6, seed=seed)
            want = expected(1.25, x, y)
            scaled_sum(1.25, x, y)
            results.append(bool(np.allclose(y, want, rtol=1e-13)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 80 and all(results)


@pytest.mark.parametrize("kernel", [cholesky, gram_schmidt], ids=lambda k: k.name)
def test_reassociated_results_are_near(kernel: nestor.Kernel) -> None:
    fast = nestor.kernel(reassociate=True)(kernel.function)
    a = f64(30, 30)
    spd = a @ a.T + 30 * np.eye(30)
    args = (spd,) if kernel.name == "cholesky" else (a, np.zeros((30, 30)), np.zeros((30, 30)))
    got, want = tuple(x.copy() for x in args), tuple(x.copy() for x in args)
    fast(*got)
    kernel.interpret(*want)
    for x, y in zip(got, want):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


@nestor.kernel(reassociate=True)
def all_monoids(
    x: nestor.f64["N", "M"], s: nestor.f64["N"], p: nestor.f64["N"], m: nestor.f64["N"],
    k: nestor.i64["N"],
):  # fmt: skip
    for i in range(N):
        for j in range(M):
            s[i] = s[i] - x[i, j] + x[i, j] * 0.25
        for j in range(M):
            p[i] *= x[i, j] * 0.5 + 1.0
        for j in range(M):
            m[i] = min(m[i], x[i, j])
        for j in range(1, M, 2):
            m[i] = max(x[i, j] * 0.5, m[i])
        for j in range(M):
            k[i] += j if x[i, j] > 0.0 else 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 0), (5, 67), (4, 1030)])
def test_accumulations_of_every_kind(shape: tuple[int, int]) -> None:
    def make() -> tuple[np.ndarray, ...]:
        rows = [f64(shape[0], seed=s) for s in range(3)]
        return (f64(*shape, seed=9), *rows, np.arange(shape[0]))

    got, want = make(), make()
    all_monoids(*got)
    all_monoids.interpret(*want)
    for x, y in zip(got, want):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11)
