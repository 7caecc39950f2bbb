"""Layouts chosen for whole programs: which, how they are explained, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nestor.frontends.torch import import_model
from nestor.ir.program import Program, Statement
from nestor.passes import layout_choice
from nestor.passes.analysis import contraction_roles
from nestor.passes.context import PassContext
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.layout_choice import assign_layouts, write_outputs_directly
from nestor.passes.pipeline import PASSES, run_pipeline
from nestor.target.cpu import parse_target
from tests.helpers.ir_programs import fn, load, program, reduce, statement, tensor, write
from tests.helpers.ir_programs import op as binary_op
from tests.helpers.pass_checks import run_checked
from tests.helpers.pass_models import residual_network


class Dense(nn.Module):
    """Layers that read all results so far, put one after the other along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(32 + 16 * n, 16, 5, padding=2) for n in range(3))
        self.out = nn.Conv2d(80, 48, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [self.stem(x).relu()]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)).relu())
        return self.out(torch.cat(found, 1))


class Branches(nn.Module):
    """An Inception-like block: branches put together along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 32, 5, padding=2)
        self.a = nn.Conv2d(32, 16, 1)
        self.b = nn.Sequential(nn.Conv2d(32, 24, 1), nn.ReLU(), nn.Conv2d(24, 32, 5, padding=2))
        self.c = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(32, 16, 1))
        self.out = nn.Conv2d(64, 32, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.out(torch.cat([self.a(x), self.b(x), self.c(x)], 1).relu())


class Hourglass(nn.Module):
    """A U-Net-like network: pooled, upsampled, put together with what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(8, 32, 5, padding=2)
        self.middle = nn.Conv2d(32, 64, 5, padding=2)
        self.up = nn.Conv2d(96, 32, 5, padding=2)
        self.sample = nn.Upsample(scale_factor=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = self.down(x).relu()
        far = self.middle(nn.functional.max_pool2d(near, 2)).relu()
        return self.up(torch.cat([self.sample(far), near], 1))


def piped(module: nn.Module, *shape: int) -> tuple[Program, PassContext]:
    """The Program that would be compiled, and the log."""
    model = import_model(module.eval(), (torch.randn(*shape),))
    context = PassContext(target=parse_target("x86-64-v4"))
    return run_pipeline(model.program, context).main, context


def before_layouts(module: nn.Module, *shape: int) -> Program:
    """The Program that ``assign_layouts`` gets."""
    current = import_model(module.eval(), (torch.randn(*shape),)).program
    context = PassContext(target=parse_target("x86-64-v4"))
    for run in PASSES:
        if run is assign_layouts:
            return current
        result = run(current, context)
        current = result[0] if isinstance(result, tuple) else result
    raise AssertionError("the pipeline does not choose layouts")


def innermost(after: Program, name: str) -> int:
    """The dimension with unit stride."""
    tensor = after.tensor(name)
    if tensor.layout is None:
        return len(tensor.shape) - 1
    return int(str(tensor.layout.physical[-1])[1:])


@pytest.mark.parametrize(
    ("module", "shape"),
    [(Dense(), (1, 3, 24, 24)), (Branches(), (1, 8, 20, 20)), (Hourglass(), (1, 8, 24, 24))],
    ids=["dense", "branches", "hourglass"],
)
def test_channels_last_through_concatenations(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Everything of eight channels or more between input and output, parts and wholes alike."""
    after, _ = piped(module, *shape)
    images = [t for t in after.by_role("temp") if len(t.shape) >= 4 and t.shape[1].const >= 8]
    assert images
    assert {t.name for t in images if innermost(after, t.name) != 1} == set()


@pytest.mark.parametrize(
    ("module", "shape", "target"),
    [(Dense(), (1, 3, 24, 24), "cat_3"), (Branches(), (1, 8, 20, 20), "cat")],
    ids=["dense", "branches"],
)
def test_convolutions_write_their_slices(
    module: nn.Module, shape: tuple[int, ...], target: str
) -> None:
    """Each part of a concatenation is written by the kernel that computes it, at its place."""
    after, _ = piped(module, *shape)
    parts = partition_program(after, l2_bytes=1 << 20).parts
    writers = [
        part.kernel
        for part in parts
        if isinstance(part, FusedKernel)
        for s in part.kernel.statements
        if isinstance(s, Statement) and any(w.tensor == target for w in s.writes)
    ]
    assert len(writers) >= 3
    for kernel in writers:
        assert contraction_roles(kernel.statements[0]) is not None


@pytest.mark.parametrize(("channels", "kernel", "size"), [(192, 7, 28), (96, 3, 112)])
def test_depthwise_alone_keeps_rows(channels: int, kernel: int, size: int) -> None:
    """A depthwise convolution with a bias between an input and an output: two transposes cost
    more than rows of pixels do."""
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    after, _ = piped(layer, 1, channels, size, size)
    assert [t.name for t in after.tensors if t.role == "temp" and t.layout is not None] == []


@pytest.mark.parametrize(("channels", "kernel", "size"), [(64, 7, 112), (144, 3, 56)])
def test_strided_depthwise_alone_is_channels_last(channels: int, kernel: int, size: int) -> None:
    """Every second pixel of a row is two loads and a shuffle for each tap: transposing is less."""
    layer = nn.Conv2d(channels, channels, kernel, 2, padding=kernel // 2, groups=channels)
    after, _ = piped(layer, 1, channels, size, size)
    assert all(innermost(after, t.name) == 1 for t in after.by_role("temp"))


def test_few_channels_keep_rows() -> None:
    """18 channels fill little more than half of two vectors; the pixels of a row fill theirs."""
    module = nn.Sequential(nn.Conv2d(18, 18, 7, padding=3, groups=18), nn.Conv2d(18, 20, 1))
    after, _ = piped(module, 1, 18, 56, 56)
    assert [t.name for t in after.tensors if t.role == "temp" and t.layout is not None] == []


def test_depthwise_inside_a_network_goes_along() -> None:
    """Between two convolutions of one pixel the channels are innermost already."""
    module = nn.Sequential(
        nn.Conv2d(32, 96, 1),
        nn.ReLU(),
        nn.Conv2d(96, 96, 3, padding=1, groups=96),
        nn.ReLU(),
        nn.Conv2d(96, 32, 1),
    )
    after, _ = piped(module, 1, 32, 28, 28)
    wide = [t for t in after.by_role("temp") if any(e.const == 96 for e in t.shape)]
    assert wide and all(after.tensor(t.name).layout is not None for t in wide)


class Block(nn.Module):
    """ConvNeXt's block: depthwise, then normalised and mixed along the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = (
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.spread(x).permute(0, 2, 3, 1))
        y = self.narrow(nn.functional.gelu(self.wide(y))).permute(0, 3, 1, 2)
        return x + y


def test_blocks_between_transposes() -> None:
    """Two blocks: the sum that goes from the one to the other keeps channels innermost."""
    after, _ = piped(nn.Sequential(Block(96), Block(96)), 1, 96, 14, 14)
    images = [
        t
        for t in after.by_role("temp")
        if [e.const for e in t.shape if e.const in (96, 14, 20)] in ([96, 14, 14], [96, 20, 20])
    ]
    assert images
    for t in images:
        assert t.shape[innermost(after, t.name)].const == 96, t.name


def test_the_answer_is_explained() -> None:
    _, context = piped(Branches(), 1, 8, 20, 20)
    entries = context.entries("assign_layouts", kind="changed")
    assert any("row-major would cost 'S_" in e.reason for e in entries)


@pytest.mark.parametrize("module", [Dense(), Hourglass()])
def test_equal_programs_get_equal_layouts(module: nn.Module) -> None:
    channels = 3 if isinstance(module, Dense) else 8
    before = before_layouts(module, 1, channels, 24, 24)
    context = PassContext(target=parse_target("x86-64-v4"))
    assert assign_layouts(before, context) == assign_layouts(before, context)


def test_only_free_temps_change() -> None:
    """Inputs, outputs, parameters, and temps that hold weights alone keep row-major order."""
    before = residual_network()
    after = run_checked(assign_layouts, before)
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, old.shape, old.role) == (new.name, new.shape, new.role)
        assert new.layout is None or new.role == "temp"


def test_falls_back_to_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the exact choice would take too long, the rules' wishes are taken as they are."""
    before = before_layouts(Branches(), 1, 8, 20, 20)
    monkeypatch.setattr(layout_choice, "minimise_sum", lambda values, tables: None)
    context = PassContext(target=parse_target("x86-64-v4"))
    wishes = layout_choice.wished_orders(before, context)
    after = assign_layouts(before, context)
    assert context.entries("assign_layouts", kind="refused")
    for t in after.by_role("temp"):
        wish = wishes.get(t.name)
        assert (t.layout is None) == (wish is None or wish == tuple(range(len(t.shape))))


def test_statements_of_many_tensors_compare_fewer_layouts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout_choice, "MAX_STATEMENT_CELLS", 2)
    before = before_layouts(Branches(), 1, 8, 20, 20)
    context = PassContext(target=parse_target("x86-64-v4"))
    after = assign_layouts(before, context)
    refused = context.entries("assign_layouts", kind="refused")
    assert refused and all("layouts of each are compared" in e.reason for e in refused)
    assert any(t.layout is not None for t in after.tensors)


def staged(shift: int = 0, more: bool = False) -> Program:
    """``T = Σ``, ``Y = T`` (shifted by ``shift``); with ``more`` something else reads ``T``."""
    from nestor.ir.affine import affine
    from nestor.ir.monoid import sum_of
    from nestor.ir.program import box
    from nestor.ir.types import DType

    at = affine("i") + shift
    statements = [
        statement(
            "sum",
            box(i=5 + shift, j=6),
            write("T", "i"),
            binary_op("mul", load("X", "i", "j"), load("X", "i", "j")),
            reduction=reduce(sum_of(DType.f32), "j"),
        ),
        statement("copy", box(i=5), write("Y", "i"), load("T", at), order=(1,)),
    ]
    tensors = [
        tensor("X", 5 + shift, 6),
        tensor("T", 5 + shift, role="temp"),
        tensor("Y", 5, role="output"),
    ]
    if more:
        tensors.append(tensor("Z", 5 + shift, role="output"))
        other = statement(
            "other", box(i=5 + shift), write("Z", "i"), fn("exp", load("T", "i")), order=(2,)
        )
        statements.append(other)
    return program("p", tensors, *statements)


class TestWrittenDirectly:
    def test_a_whole_copy_goes(self) -> None:
        after = run_checked(write_outputs_directly, staged())
        assert [s.name for s in after.statements] == ["sum"]

    def test_what_something_else_reads_stays(self) -> None:
        before = staged(more=True)
        assert write_outputs_directly(before, PassContext()) is before

    def test_a_part_stays(self) -> None:
        before = staged(shift=1)
        assert write_outputs_directly(before, PassContext()) is before
