"""Every model of the collection, compiled and compared with float64.

Correct means: the error against float64 eager is at most four times float32 eager's own, or four
units in the last place of the output's scale (``benchmarks.criterion``).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import pytest
import torch

import nestor
from benchmarks.criterion import eager_errors, judge, reference
from benchmarks.models import MODELS, ModelCase

SEEDS = (0, 1, 2)


@pytest.fixture(params=MODELS.values(), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Iterator[ModelCase]:
    """A model; what it took is given back before the next one."""
    yield request.param
    gc.collect()


def check(
    model: torch.nn.Module, compiled: object, samples: Sequence[tuple[torch.Tensor, ...]]
) -> None:
    """Assert that ``compiled`` is correct on each of ``samples`` and leaves them alone."""
    judged = []
    for inputs in samples:
        kept = [x.clone() for x in inputs]
        with torch.inference_mode():
            eager = model(*inputs)
        outputs = compiled(*inputs)  # type: ignore[operator]
        for x, before in zip(inputs, kept, strict=True):
            assert torch.equal(x, before), "an input was overwritten"
        judged.append((outputs, eager, reference(model, inputs)))
    usual = eager_errors([(eager, exact) for _, eager, exact in judged])
    for seed, (outputs, eager, exact) in enumerate(judged):
        verdict = judge(outputs, eager, exact, usual_errors=usual)
        assert verdict.correct, (seed, verdict)


def test_correct_at_batch_one_and_three(case: ModelCase) -> None:
    """Fixed shapes: one compilation a batch size, several seeds, no operator left to PyTorch."""
    model = case.build()
    for batch in (1, 3):
        compiled = nestor.compile(model, case.inputs(0, batch), strict=True, name=case.name)
        assert not compiled.report().externs
        check(model, compiled, [case.inputs(seed, batch) for seed in SEEDS])


DYNAMIC = ("mlp", "silero", "crepe", "minilm", "mobilenetv2", "llama_4x512", "lstm_12", "bigru_12")


@pytest.mark.parametrize("name", DYNAMIC)
def test_one_compilation_for_every_batch(name: str) -> None:
    """The batch as a symbol: compiled at 2, called at others."""
    case = MODELS[name]
    model = case.build()
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({d: batch} for d in case.batch_dims)
    compiled = nestor.compile(
        model, case.inputs(0, 2), dynamic_shapes=shapes, strict=True, name=name
    )
    check(model, compiled, [case.inputs(seed, size) for seed, size in enumerate((1, 3, 2))])
