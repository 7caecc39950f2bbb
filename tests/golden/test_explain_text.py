"""The explanation and the picture of one kernel, word for word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nestor.explaining import explain_kernel
from nestor.explaining_text import explanation_text
from nestor.ir.schedule import Interchange, Parallel
from nestor.picture import picture_of
from nestor.picture_svg import svg_text
from nestor.target.cpu import parse_target
from tests.helpers import explain_kernels as kernels


def test_explanation(golden: Callable[[str, str], None]) -> None:
    e = explain_kernel(
        kernels.jacobi,
        parse_target("x86-64-v3"),
        schedule=kernels.time_skewed(),
        attempts=[Parallel(loop="t.o"), Interchange(loops=("x.i", "t.i"))],
    )
    # Time differs from run to run, folders from machine to machine, and isl's orders are not ours.
    verdicts = tuple(replace(v, seconds=0.001) for v in e.verdicts)
    check = replace(e.check, seconds=dict.fromkeys(e.check.seconds, 0.001), pairs=1, queries=1)
    stable = replace(
        e,
        file="explain_kernels.py",
        verdicts=verdicts,
        check=check,
        seconds={"prove": 0.001},
        orders=(),
        unfinished=(),
    )
    golden("explain_jacobi.txt", explanation_text(stable, lines=12, width=100) + "\n")


def test_picture(golden: Callable[[str, str], None]) -> None:
    picture = picture_of(kernels.jacobi.program, kernels.time_skewed(), sizes={"T": 8, "N": 14})
    golden("explain_jacobi.svg", svg_text(picture))


def test_picture_of_depth_three(golden: Callable[[str, str], None]) -> None:
    e = explain_kernel(kernels.product, parse_target("x86-64-v3"), schedule=())
    golden("explain_product.svg", svg_text(picture_of(e.program, e.schedule)))
