"""Replaced statements leave what others, calls of PyTorch and aliases need."""

from __future__ import annotations

from nestor.ir.affine import affine, variable
from nestor.ir.expr import Load
from nestor.ir.program import Domain, Extern, IndexRange, Program, Statement, Tensor, Write
from nestor.ir.types import DType
from nestor.passes.context import PassContext
from nestor.passes.replacing import Replacements


def _tensor(name: str, role: str, alias_of: str | None = None) -> Tensor:
    return Tensor(name=name, shape=(affine(4),), dtype=DType.f32, role=role, alias_of=alias_of)  # type: ignore[arg-type]


def _copy(source: str, target: str, position: int) -> Statement:
    return Statement(
        name=f"S_{target}",
        domain=Domain(ranges=(IndexRange(name="i", lower=affine(0), upper=affine(4)),)),
        order=(position,),
        writes=(Write(tensor=target, indices=(variable("i"),)),),
        elements=(Load(tensor=source, indices=(variable("i"),), dtype=DType.f32),),
    )


def _call(source: str, target: str, position: int) -> Extern:
    return Extern(
        name=f"E_{target}",
        operator="aten.sort.default",
        arguments=(),
        inputs=(source,),
        outputs=(target,),
        order=(position,),
    )


def test_only_temps_that_nothing_names_go() -> None:
    tensors = (
        _tensor("x", "input"),
        _tensor("old", "temp"),
        _tensor("called", "temp"),
        _tensor("unread", "temp"),
        _tensor("root", "temp"),
        _tensor("view", "temp", alias_of="root"),
        _tensor("y", "output"),
    )
    statements = (
        _copy("x", "old", 0),
        _copy("old", "y", 1),
        _call("x", "called", 2),
        _call("called", "unread", 3),
        _copy("x", "view", 4),
    )
    program = Program(name="p", tensors=tensors, statements=statements)
    out = Replacements(program, PassContext())
    assert out.program() is program
    out.placed["S_y"] = [_copy("x", "y", 1)]
    out.gone |= {"S_old", "S_y"}
    rewritten = out.program()
    assert [t.name for t in rewritten.tensors] == ["x", "called", "unread", "root", "view", "y"]
    assert [s.name for s in rewritten.statements] == ["S_y", "E_called", "E_unread", "S_view"]
