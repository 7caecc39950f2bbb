"""The loops that people read compute what the kernel does: they are run as Python."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nestor.explaining import explain_kernel
from nestor.ir.affine import affine
from nestor.ir.schedule import Interchange, Schedule, Tile, Vectorize
from nestor.nest_text import condition
from nestor.target.cpu import parse_target
from tests.helpers import explain_kernels as kernels

CASES: list[tuple[Any, Schedule]] = [
    (kernels.jacobi, kernels.time_skewed(3, 4)),
    (kernels.seidel, (Tile(loop="j", size=4), Tile(loop="i", size=3))),
    (
        kernels.product,
        (
            Tile(loop="j", size=4),
            Interchange(loops=("j.o", "k", "j.i")),
            Vectorize(loop="j.i"),
        ),
    ),
    (kernels.triangle, (Tile(loop="i", size=3),)),
    (kernels.branches, ()),
]
SIZES = {"T": 5, "N": 9, "M": 7, "K": 6}


def as_python(lines: Sequence[str]) -> str:
    """Without names of statements; names of loops become identifiers."""
    text = "\n".join(re.sub(r"^(\s*)S\d+: ", r"\1", line) for line in lines)
    return re.sub(r"\b([a-z]+)\.(?=[io\d])", r"\1_", re.sub(r"\.(?=[io]\b)", "_", text))


@pytest.mark.parametrize(("kernel", "schedule"), CASES, ids=lambda v: getattr(v, "name", ""))
def test_both_texts_compute_the_kernel(kernel: Any, schedule: Schedule) -> None:
    e = explain_kernel(kernel, parse_target("x86-64-v3"), schedule=schedule)
    assert e.verdicts[0].accepted, e.verdicts[0].message
    rng = np.random.default_rng(1)
    arrays = {
        t.name: rng.random(tuple(s.evaluate(SIZES) for s in t.shape)) + 0.5
        for t in kernel.program.tensors
    }
    expected = {n: a.copy() for n, a in arrays.items()}
    scalars = {"T": SIZES["T"]} if kernel is kernels.jacobi else {}
    kernel.interpret(**scalars, **expected)
    assert any((expected[n] != arrays[n]).any() for n in arrays)
    for lines in (e.before, e.after):
        found = {n: a.copy() for n, a in arrays.items()}
        exec(as_python(lines), {**SIZES, **found})
        for name in arrays:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-13)


def test_conditions_put_what_is_subtracted_on_the_other_side() -> None:
    i, n = affine("i"), affine("N")
    assert condition(n - i - 1) == "N > i"
    assert condition(n - i) == "N >= i"
    assert condition(i - 3) == "i >= 3"
    assert condition(1 - i) == "i <= 1"
