"""Every model of the collection, compiled and compared with float64.

Correct means: the error against float64 eager is at most four times float32 eager's own, or four
units in the last place of the output's scale (``benchmarks.criterion``).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

import nestor
from benchmarks.criterion import inputs_per_sample, judge, reference, stack_outputs
from benchmarks.models import MODELS, SMALLER, ModelCase

SAMPLES = 3
"""How often a compiled model is judged, each time at fresh inputs."""


@pytest.fixture(
    params=[SMALLER.get(name, case) for name, case in MODELS.items()], ids=lambda case: case.name
)
def case(request: pytest.FixtureRequest) -> Iterator[ModelCase]:
    """A model; what it took is given back before the next one."""
    yield request.param
    gc.collect()


def check(
    case: ModelCase, model: torch.nn.Module, compiled: object, batch: int, samples: int = SAMPLES
) -> None:
    """Assert that ``compiled`` is correct on fresh samples and leaves its inputs alone."""
    with torch.inference_mode():
        count = inputs_per_sample(model(*case.inputs(0, batch)))
    for sample in range(samples):
        outputs, eager, exact = [], [], []
        for seed in range(sample * count, (sample + 1) * count):
            inputs = case.inputs(seed, batch)
            with torch.inference_mode():
                eager.append(model(*inputs))
            outputs.append(compiled(*inputs))  # type: ignore[operator]
            for x, before in zip(inputs, case.inputs(seed, batch), strict=True):
                assert torch.equal(x, before), "an input was overwritten"
            exact.append(reference(model, inputs))
        verdict = judge(stack_outputs(outputs), stack_outputs(eager), stack_outputs(exact))
        assert verdict.correct, (sample, verdict)


def test_correct_at_batch_one_and_three(case: ModelCase) -> None:
    """Fixed shapes: one compilation a batch size, several seeds, no operator left to PyTorch."""
    model = case.build()
    for batch in (1, 3):
        compiled = nestor.compile(model, case.inputs(0, batch), strict=True, name=case.name)
        assert not compiled.report().externs
        check(case, model, compiled, batch)


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
    for size in (1, 3, 2):
        check(case, model, compiled, size, samples=1)


@pytest.mark.parametrize("name", ("silero", "minilm", "gru_12"))
def test_correct_on_avx2(name: str) -> None:
    """Narrower vectors than the machine may have: convolutions, attention, recurrences."""
    case = MODELS[name]
    model = case.build()
    compiled = nestor.compile(model, case.inputs(0, 3), strict=True, name=name, target="x86-64-v3")
    assert compiled.report().target == "x86-64-v3"
    check(case, model, compiled, batch=3, samples=1)
