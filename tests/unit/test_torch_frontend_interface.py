"""What an import says about calling the model: trees, inputs, outputs, weights, mutations."""

from __future__ import annotations

import collections
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestor.errors import InputError, Unsupported
from nestor.frontends.torch import ImportedModel, import_model
from tests.helpers.torch_reference import check_model, interpret, interpret_all


class Pair(NamedTuple):
    """A named tuple of results."""

    first: Any
    second: Any


class Nested(nn.Module):
    """Structured arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor, others: list[Tensor], *, flag: bool = True, k: int = 2) -> Any:
        y = x * self.scale if flag else x
        ordered = collections.OrderedDict(b=others[0] + k, a=None)
        return {"y": y, "pair": Pair(y, (x, 7, "text")), "same": [y, self.scale], "o": ordered}


def _nested() -> ImportedModel:
    x = torch.ones(3, 2)
    return import_model(Nested(), (x, [x + 1]), {"flag": True})


def test_trees_are_json_and_complete() -> None:
    imported = _nested()
    assert json.loads(json.dumps(imported.in_tree)) == imported.in_tree
    args, kwargs = imported.in_tree["items"]
    assert args["items"][0] == {"type": "tensor", "index": 0}
    assert args["items"][1] == {"type": "list", "items": [{"type": "tensor", "index": 1}]}
    assert kwargs["keys"] == ["flag"]
    assert kwargs["items"] == [{"type": "const", "value": True}]
    out = imported.out_tree
    assert json.loads(json.dumps(out)) == out
    assert out["keys"] == ["y", "pair", "same", "o"]
    y, pair, same, ordered = out["items"]
    assert pair["type"] == "namedtuple" and pair["class"].endswith(":Pair")
    assert pair["fields"] == ["first", "second"]
    inner = pair["items"][1]["items"]
    assert inner[1:] == [{"type": "const", "value": 7}, {"type": "const", "value": "text"}]
    assert ordered["class"] == "collections:OrderedDict"
    assert ordered["items"][1] == {"type": "none"}
    tensors = [imported.outputs[leaf["index"]].tensor for leaf in (y, pair["items"][0])]
    assert tensors[0] == tensors[1]
    assert imported.outputs[inner[0]["index"]].tensor == imported.inputs[0].name
    scale = imported.outputs[same["items"][1]["index"]].tensor
    assert imported.owners[scale].path == "scale"


def test_inputs_in_calling_order() -> None:
    imported = _nested()
    assert [s.path for s in imported.inputs] == ["args[0]", "args[1][0]"]
    assert [s.dtype for s in imported.inputs] == [torch.float32] * 2
    names = [t.name for t in imported.program.by_role("input")]
    assert names == [s.name for s in imported.inputs]


def test_ignored_input_stays_in_the_calling_convention() -> None:
    imported = import_model(lambda x, unused: x + 1, (torch.ones(2), torch.ones(3)))
    assert [t.name for t in imported.program.by_role("input")] == [s.name for s in imported.inputs]
    assert len(imported.inputs) == 2


def test_model_output_class_is_named_by_path() -> None:
    from torch.utils import _pytree

    class Result:
        def __init__(self, a: Tensor, b: Tensor) -> None:
            self.a, self.b = a, b

    _pytree.register_pytree_node(
        Result,
        lambda r: ([r.a, r.b], ["a", "b"]),
        lambda values, names: Result(*values),
        serialized_type_name="tests.Result",
    )
    imported = import_model(lambda x: Result(x + 1, x), (torch.ones(2),))
    assert imported.out_tree["type"] == "object"
    assert imported.out_tree["fields"] == ["a", "b"]
    assert imported.out_tree["class"].endswith("Result")


def test_weights_are_live_and_have_owners() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    imported = import_model(model, (torch.ones(1, 3),))
    assert {o.path for o in imported.owners.values()} == {n for n, _ in model.named_parameters()}
    for name, owner in imported.owners.items():
        assert imported.weights[name] is owner.current()
    first = next(n for n, o in imported.owners.items() if o.path == "0.weight")
    model[0].weight = nn.Parameter(torch.zeros(4, 3))
    assert imported.owners[first].current() is model[0].weight
    assert imported.weights[first] is not model[0].weight


def test_unused_weights_are_not_part_of_the_program() -> None:
    model = nn.Linear(3, 4)
    model.extra = nn.Parameter(torch.zeros(100))
    imported = import_model(model, (torch.ones(1, 3),))
    assert len(imported.weights) == 2


def test_tied_weights_are_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    imported = import_model(Tied(), (torch.ones(1, 3),))
    matrices = [t for t in imported.weights.values() if t.dim() == 2]
    assert len(matrices) == 1


class Counter(nn.Module):
    """Overwrites two buffers and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        x.clamp_(min=0.0)
        return x + self.mean


def test_mutation_of_buffers_and_inputs() -> None:
    model, x = Counter(), torch.randn(4, 3)
    imported = import_model(model, (x.clone(),))
    assert {(m.kind, m.target) for m in imported.mutated} == {
        ("buffer", "count"),
        ("buffer", "mean"),
        ("input", imported.inputs[0].name),
    }
    assert not any(model.count for _ in (0,)), "importing must not run the model's mutations"
    (y,), new = interpret_all(imported, x)
    given = x.clone()
    wanted = model(given)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(new["mean"], model.mean)
    assert int(new["count"]) == 1
    torch.testing.assert_close(new[imported.inputs[0].name], given)
    roles = {t.name: t.role for t in imported.program.tensors}
    states = [n for n, o in imported.owners.items() if o.path in ("count", "mean")]
    assert all(roles[n] == "state" for n in states)
    assert all(roles[m.value.tensor] == "output" for m in imported.mutated)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(0, 2, 3, 1) + 0,
        lambda x: F.conv2d(x.to(memory_format=torch.channels_last), torch.ones(5, 3, 1, 1)),
        lambda x: x.exp().transpose(1, 2),
        lambda x: x.sum(1, keepdim=True),
        lambda x: x,
        lambda x: x.permute(3, 1, 0, 2),
        lambda x: (x * 2).permute(1, 0, 2, 3).contiguous(),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_results_have_eagers_strides(function: Any, batch: int) -> None:
    x = torch.randn(batch, 3, 4, 5)
    imported = import_model(function, (x,))
    (found,) = interpret(imported, x)
    wanted = function(x)
    torch.testing.assert_close(found, wanted)
    assert found.stride() == wanted.stride()


def test_result_tensors_are_distinct_and_fresh() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x + 1
        return y, y.t(), y[0], y

    imported = check_model(function, (torch.randn(2, 3),))
    roles = {t.name: t.role for t in imported.program.tensors}
    assert all(roles[s.tensor] == "output" for s in imported.outputs)
    assert imported.outputs[0] == imported.outputs[3]


def test_constants_of_the_code() -> None:
    table = torch.arange(6.0).reshape(2, 3)
    imported = check_model(lambda x: x + table * torch.tensor(2.0), (torch.randn(2, 3),))
    constants = imported.program.by_role("constant")
    assert len(constants) == 1, "scalars are literals"
    np.testing.assert_array_equal(imported.weights[constants[0].name].numpy(), table.numpy())


def test_exported_programs_are_accepted() -> None:
    model, x = nn.Linear(3, 4).eval(), torch.randn(2, 3)
    imported = import_model(torch.export.export(model, (x,)))
    torch.testing.assert_close(interpret(imported, x)[0], model(x))


def test_odd_arguments_are_refused() -> None:
    class Opaque:
        pass

    with pytest.raises((InputError, Unsupported)):
        import_model(lambda x, o: x, (torch.ones(2), Opaque()))
