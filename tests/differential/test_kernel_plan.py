"""Calls like the one before take the short way: they compute and refuse the same."""
# ruff: noqa: F821, UP037

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import nestor
from nestor.errors import InputError
from nestor.kernel_plan import CallPlan


@nestor.kernel
def shifted(a: nestor.f64, k: int, x: nestor.f64["N"], y: nestor.f64["N"]):
    for i in range(N):
        y[i] += a * x[i] + k


@nestor.kernel
def narrow(a: nestor.f32, k: nestor.i32, x: nestor.f32["N"], y: nestor.i32["N"]):
    for i in range(N):
        x[i] = a * x[i]
        y[i] = y[i] + k


def make(n: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.normal(size=n)


def planned(kernel: Any, call: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Make the call; whether it took the short way."""
    ways: list[bool] = []
    run = CallPlan.run

    def watched(self: CallPlan, args: Any, kwargs: Any) -> bool:
        ways.append(run(self, args, kwargs))
        return ways[-1]

    with monkeypatch.context() as patch:
        patch.setattr(CallPlan, "run", watched)
        call()
    return ways == [True]


@pytest.fixture(autouse=True)
def _called_before() -> None:
    x, y = make()
    shifted(2.0, 3, x, y)


def test_same_kind_of_arguments_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, scale in ((1, 0.5), (2, np.float64(-4.0))):
        x, y = make(seed=seed)
        want = y + float(scale) * x + 3
        assert planned(shifted, lambda: shifted(scale, 3, x, y), monkeypatch)  # noqa: B023
        np.testing.assert_allclose(y, want, rtol=1e-15)
        assert planned(shifted, lambda: shifted(scale, y=y, x=x, k=3), monkeypatch)  # noqa: B023
        np.testing.assert_allclose(y, want + float(scale) * x + 3, rtol=1e-14)


@pytest.mark.parametrize("change", ["size", "integer", "strided", "torch", "whole number"])
def test_other_arguments_take_the_long_way(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = make(9 if change == "size" else 7, seed=5)
    k = 4 if change == "integer" else 3
    a: Any = 2 if change == "whole number" else 2.0
    given: tuple[Any, Any] = (x, y)
    if change == "strided":
        given = (np.repeat(x, 2)[::2], y)
    if change == "torch":
        given = (torch.from_numpy(x), torch.from_numpy(y))
    want = y + 2.0 * x + k
    assert not planned(shifted, lambda: shifted(a, k, *given), monkeypatch)
    np.testing.assert_allclose(y, want, rtol=1e-15)


def _read_only(y: np.ndarray) -> np.ndarray:
    y.flags.writeable = False
    return y


REFUSED: dict[str, Callable[[np.ndarray, np.ndarray], tuple[Any, ...]]] = {
    "read-only": lambda x, y: (2.0, 3, x, _read_only(y)),
    "overlap": lambda x, y: (2.0, 3, y, y),
    "dtype": lambda x, y: (2.0, 3, x.astype(np.float32), y),
    "byte order": lambda x, y: (2.0, 3, x.astype(">f8"), y),
    "shape": lambda x, y: (2.0, 3, x[:6].copy(), y),
    "rank": lambda x, y: (2.0, 3, x.reshape(1, 7), y),
    "scalar": lambda x, y: ("2", 3, x, y),
    "integer": lambda x, y: (2.0, 3.0, x, y),
    "integer truth": lambda x, y: (2.0, True, x, y),
    "no array": lambda x, y: (2.0, 3, list(x), y),
    "count": lambda x, y: (2.0, 3, x),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_is_refused_stays_refused(problem: str) -> None:
    x, y = make(seed=1)
    shifted(2.0, 3, x, y)
    before = y.copy()
    with pytest.raises(InputError):
        shifted(*REFUSED[problem](x, y))
    np.testing.assert_array_equal(y, before)


def test_arrays_that_meet_partly() -> None:
    whole = np.arange(20.0)
    shifted(2.0, 3, whole[:7], whole[7:14])
    with pytest.raises(InputError, match="share memory"):
        shifted(2.0, 3, whole[:7], whole[6:13])


def test_misaligned_array_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = make()
    odd = np.zeros(57, np.uint8)[1:].view(np.float64)
    odd[...] = y
    want = odd + 2.0 * x + 3
    assert not planned(shifted, lambda: shifted(2.0, 3, x, odd), monkeypatch)
    np.testing.assert_allclose(odd, want, rtol=1e-15)


def test_read_only_input_is_read() -> None:
    x, y = make(seed=3)
    want = y + 2.0 * x + 3
    shifted(2.0, 3, _read_only(x), y)
    np.testing.assert_allclose(y, want, rtol=1e-15)


def test_torch_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (torch.from_numpy(v) for v in make(seed=4))
    shifted(2.0, 3, x, y)
    version, want = y._version, y + 2.0 * x + 3
    assert planned(shifted, lambda: shifted(2.0, 3, x, y), monkeypatch)
    assert torch.allclose(y, want, rtol=1e-15)
    assert y._version > version
    with pytest.raises(InputError, match="gradient"):
        shifted(2.0, 3, x, y.requires_grad_())
    with pytest.raises(InputError):
        shifted(2.0, 3, x, torch.zeros(1, dtype=torch.float64).expand(7))


def test_narrow_scalars_round_and_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.ones(5, np.float32), np.zeros(5, np.int32)
    narrow(0.5, 1, x, y)
    assert planned(narrow, lambda: narrow(0.1, -(2**31), x, y), monkeypatch)
    np.testing.assert_array_equal(x, np.float32(0.5) * np.float32(0.1))
    np.testing.assert_array_equal(y, 1 - 2**31)
    with pytest.raises(InputError, match="fit"):
        narrow(0.5, 2**31, x, y)
    narrow(1e300, 0, x, y)
    assert np.all(np.isinf(x))


def test_threads_share_a_plan() -> None:
    failed: list[str] = []

    def work(seed: int) -> None:
        x, y = make(501, seed)
        for scale in range(40):
            want = y + float(scale) * x + seed
            shifted(float(scale), seed, x, y)
            if not np.allclose(y, want, rtol=1e-14):
                failed.append(f"{seed}, {scale}")

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failed == []
