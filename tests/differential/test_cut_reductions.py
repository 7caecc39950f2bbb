"""Reductions cut into parts for a target's cores: answers, and equal bits at any thread count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import nestor
from nestor.frontends.torch import import_model
from nestor.ir.program import Statement
from nestor.passes.context import PassContext
from nestor.passes.cut_reductions import cut_reductions
from nestor.target.cpu import CpuTarget, parse_target
from tests.helpers.modules import Fun

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "sum": (lambda: Fun(lambda x: x.sum()), ((1 << 20,),)),
    "sum_of_a_prime": (lambda: Fun(lambda x: x.sum()), ((399_989,),)),
    "argmax": (lambda: Fun(lambda x: x.argmax()), ((399_989,),)),
    "largest_columns": (lambda: Fun(lambda x: x.amax(0)), ((100_003, 3),)),
    "mean_columns": (lambda: Fun(lambda x: x.mean(0)), ((120_000, 4),)),
    "variance": (lambda: Fun(lambda x: x.var()), ((300_000,),)),
    "dot": (lambda: Fun(lambda a, b: (a * b).sum()), ((300_000,), (300_000,))),
    "few_rows": (lambda: nn.Linear(8192, 10), ((4, 8192),)),
    "few_rows_given": (lambda: Fun(torch.matmul), ((16, 8192), (8192, 16))),
    "small_image": (lambda: nn.Conv2d(512, 16, 3, padding=1), ((1, 512, 7, 7),)),
}


@pytest.fixture(params=[2, 64])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Compile for a machine with so many cores, whatever this one has."""
    count: int = request.param
    native = replace(parse_target("native"), cores=count)

    def parse(name: str) -> CpuTarget:
        return native if name == "native" else replace(parse_target(name), cores=count)

    monkeypatch.setattr("nestor.building.parse_target", parse)
    return count


@pytest.mark.parametrize("name", CASES)
def test_parts_give_the_answer_on_any_number_of_threads(name: str, cores: int) -> None:
    make, shapes = CASES[name]
    torch.manual_seed(0)
    model, inputs = make().eval(), tuple(torch.randn(s) for s in shapes)
    answers = []
    for threads in (1, 2):
        compiled = nestor.compile(model, inputs, threads=threads, strict=True)
        with torch.inference_mode():
            answers.append(compiled(*inputs))
    assert torch.equal(answers[0], answers[1])
    with torch.inference_mode():
        wanted = model.double()(*(x.double() for x in inputs))
    if name == "argmax":
        assert torch.equal(answers[0], wanted)
    else:
        scale = float(sum(x.abs().max() for x in inputs)) * 1e-6
        torch.testing.assert_close(
            answers[0].double(), wanted, rtol=2e-5, atol=scale * shapes[0][-1] ** 0.5
        )


def _statements(model: nn.Module, *inputs: torch.Tensor, cores: int) -> list[Statement]:
    program = import_model(model, inputs).program
    target = replace(parse_target("native"), cores=cores)
    found = cut_reductions(program, PassContext(target=target)).statements
    return [s for s in found if isinstance(s, Statement)]


def test_who_is_cut() -> None:
    total = Fun(lambda x: x.sum())
    assert len(_statements(total, torch.randn(1 << 20), cores=1)) == 1
    assert len(_statements(total, torch.randn(1 << 20), cores=2)) == 2
    assert len(_statements(total, torch.randn((1 << 20) + 1), cores=2)) >= 2
    assert len(_statements(total, torch.randn(1000), cores=64)) == 1  # too little work
    assert len(_statements(Fun(lambda x: x.sum(1)), torch.randn(512, 9000), cores=64)) == 1
    scan = Fun(lambda x: x.cumsum(0))
    assert len(_statements(scan, torch.randn(1 << 18), cores=64)) == 1
