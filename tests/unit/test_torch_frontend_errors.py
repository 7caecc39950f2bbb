"""Errors of an import name what, where, and what to do; Externs name the line of the model."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nestor.errors import ExportError, InputError, Unsupported
from nestor.frontends.torch import import_model, run_extern
from nestor.ir.program import Extern
from tests.helpers.torch_reference import check_model


class Branching(nn.Module):
    """Decides by a tensor's value."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that cannot be exported
            return x + 1
        return x


def test_data_dependent_control_flow(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError) as caught:
        import_model(Branching(), (torch.ones(3),))
    text = str(caught.value)
    lines, start = inspect.getsourcelines(Branching)
    line = start + next(k for k, s in enumerate(lines) if "cannot be exported" in s)
    assert "Branching cannot be exported" in text
    assert f"{__file__}:{line}" in text
    assert "depends on a tensor's value" in text
    assert "fix:" in text and "torch.where" in text
    assert capsys.readouterr() == ("", ""), "PyTorch's own account of it is held back"


def test_what_the_model_prints_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    def function(x: Tensor) -> Tensor:
        print("tracing", file=sys.stderr)
        return x + 1

    import_model(function, (torch.ones(3),))
    assert "tracing" in capsys.readouterr().err


def test_an_error_in_the_model_is_an_export_error() -> None:
    def function(x: Tensor) -> Tensor:
        return x @ torch.ones(5, 2)

    with pytest.raises(ExportError, match=__file__):
        import_model(function, (torch.ones(3, 4),))


def test_a_folder_whose_name_starts_like_that_of_torch_is_the_users() -> None:
    """As a folder ``torchlib`` beside the installed ``torch`` is."""
    file = str(Path(torch.__file__).parent) + "lib/model.py"
    scope: dict[str, Any] = {"torch": torch}
    exec(compile("def function(x):\n    return x @ torch.ones(5, 2)\n", file, "exec"), scope)
    with pytest.raises(ExportError, match=f"{re.escape(file)}:2"):
        import_model(scope["function"], (torch.ones(3, 4),))


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {}, "missing"),
        ((torch.ones(2), torch.ones(2)), {}, "too many"),
        ((torch.ones(2),), {"other": 1}, "unexpected"),
        (torch.ones(2), {}, r"not a tuple"),
        ((torch.ones(2, dtype=torch.complex64),), {}, "complex64"),
        ((torch.ones(2).to_sparse(),), {}, "sparse"),
        ((torch.empty(2, device="meta"),), {}, "meta"),
    ],
)
def test_bad_example_inputs(args: Any, kwargs: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        import_model(nn.ReLU(), args, kwargs)


def test_a_model_that_is_none() -> None:
    with pytest.raises(InputError, match=r"nn\.Module"):
        import_model(3, (torch.ones(2),))  # type: ignore[arg-type]


def test_control_flow_operators_are_unsupported() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(Unsupported, match=r"torch\.where"):
        import_model(function, (torch.ones(3),))


def test_results_of_unknown_size_are_unsupported() -> None:
    with pytest.raises(Unsupported, match="depends on data"):
        import_model(lambda x: x.nonzero(), (torch.ones(3),))


class Sorting(nn.Module):
    """Uses an operator that has no rule."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, order = torch.sort(x * 2, dim=-1, descending=True)  # no rule
        return values + 1, order


def test_an_operator_without_a_rule_is_an_extern_with_its_line() -> None:
    imported = check_model(Sorting(), (torch.randn(3, 5),), externs=1)
    (extern,) = imported.externs()
    assert extern.operator == "aten.sort.default"
    lines, start = inspect.getsourcelines(Sorting)
    assert extern.origin is not None
    assert extern.origin.file == __file__
    assert extern.origin.line == start + next(k for k, s in enumerate(lines) if "# no rule" in s)


def test_extern_arguments_come_back() -> None:
    imported = import_model(
        lambda x: torch.sort(x.t(), dim=0)[0].to(torch.float64), (torch.randn(3, 5),)
    )
    (extern,) = imported.externs()
    assert isinstance(extern, Extern)
    x = torch.randn(5, 3)
    values, order = run_extern(extern, {extern.inputs[0]: x})
    torch.testing.assert_close(values, x.sort(dim=0)[0])
    assert order.dtype is torch.int64


def test_random_numbers_are_an_extern() -> None:
    imported = import_model(lambda x: x + torch.rand_like(x), (torch.randn(3),))
    assert [e.operator for e in imported.externs()] == ["aten.rand_like.default"]
