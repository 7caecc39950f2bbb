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
from benchmarks.criterion import FEW_ELEMENTS, eager_errors, judge, reference
from benchmarks.models import MODELS, ModelCase
from nestor.benchmarking.outputs import arrays

SEEDS = (0, 1, 2)


@pytest.fixture(params=MODELS.values(), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Iterator[ModelCase]:
    """A model; what it took is given back before the next one."""
    yield request.param
    gc.collect()


def has_few(eager: object) -> bool:
    """Whether an output is so small that eager's own error there is a matter of luck."""
    return any(a.size < FEW_ELEMENTS for a in arrays(eager))


def usual_errors(
    case: ModelCase, model: torch.nn.Module, like: tuple[torch.Tensor, ...]
) -> list[float]:
    """How far eager is off per output, the most over sixteen inputs of the same batch."""
    batch = like[0].shape[case.batch_dims[0]]
    samples = []
    for seed in range(16):
        inputs = case.inputs(seed, batch)
        with torch.inference_mode():
            samples.append((model(*inputs), reference(model, inputs)))
    return eager_errors(samples)


def check(
    case: ModelCase,
    model: torch.nn.Module,
    compiled: object,
    samples: Sequence[tuple[torch.Tensor, ...]],
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
    usual = usual_errors(case, model, samples[0]) if has_few(judged[0][1]) else None
    for seed, (outputs, eager, exact) in enumerate(judged):
        verdict = judge(outputs, eager, exact, usual_errors=usual)
        assert verdict.correct, (seed, verdict)


def test_correct_at_batch_one_and_three(case: ModelCase) -> None:
    """Fixed shapes: one compilation a batch size, several seeds, no operator left to PyTorch."""
    model = case.build()
    for batch in (1, 3):
        compiled = nestor.compile(model, case.inputs(0, batch), strict=True, name=case.name)
        assert not compiled.report().externs
        check(case, model, compiled, [case.inputs(seed, batch) for seed in SEEDS])


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
    check(case, model, compiled, [case.inputs(seed, size) for seed, size in enumerate((1, 3, 2))])
