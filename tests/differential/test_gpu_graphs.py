"""Calls that are recorded: whatever tensors come, they leave what kernels one by one would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

from nestor.runtime import gpu_steps
from nestor.runtime.gpu_executable import GpuExecutable
from nestor.runtime.gpu_steps import Launch, waits_of
from tests.differential.test_triton_models import built
from tests.helpers.triton_cases import R


class KeptGraph:
    """A graph whose kernels run in Triton's interpreter, in any order that it allows."""

    def __init__(self) -> None:
        self.draw = Random(0)
        self.nodes: list[tuple[Launch, int, list[Any], tuple[int, ...]]] = []
        self.waits: list[set[int]] = []
        self.is_finished = False
        self.starts, self.changed = 0, list[int]()

    def add(
        self,
        launch: Launch,
        programs: int,
        tensors: Sequence[Any],
        sizes: Sequence[int],
        after: Sequence[int],
    ) -> int:
        assert not self.is_finished
        assert all(n < len(self.nodes) for n in after)
        self.waits.append(set(after))
        self.nodes.append((launch, programs, list(tensors), tuple(sizes)))
        return len(self.nodes) - 1

    def finish(self) -> None:
        self.is_finished = True

    def change(self, number: int, tensors: Sequence[Any], sizes: Sequence[int]) -> None:
        assert self.is_finished
        launch, programs, _, before = self.nodes[number]
        assert before == tuple(sizes)
        self.nodes[number] = (launch, programs, list(tensors), before)
        self.changed.append(number)

    def start(self) -> None:
        assert self.is_finished
        done: set[int] = set()
        while len(done) < len(self.nodes):
            ready = [n for n, w in enumerate(self.waits) if n not in done and w <= done]
            number = self.draw.choice(ready)
            launch, programs, tensors, sizes = self.nodes[number]
            launch(programs, tensors, sizes)
            done.add(number)
        self.starts += 1


def recording(
    monkeypatch: pytest.MonkeyPatch, module: nn.Module, inputs: Any, folder: Path, **more: object
) -> tuple[Any, list[KeptGraph]]:
    """A model's executable, and the graphs that it makes."""
    executable = built(module, inputs, folder, **more).executable
    made: list[KeptGraph] = []

    def make() -> KeptGraph:
        made.append(KeptGraph())
        return made[-1]

    monkeypatch.setattr(executable, "_make_graph", make)
    return executable, made


class Net(nn.Module):
    """Three kernels; the one between those of the input and the output never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(20, 30), nn.Linear(30, 30), nn.Linear(30, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.third(self.second(self.first(x).relu()).relu())
        return found


def test_calls_after_the_first_are_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = Net()
    executable, graphs = recording(monkeypatch, module, (R(5, 20),), tmp_path)
    kept = []
    with torch.no_grad():
        for _ in range(4):
            x = R(5, 20)
            kept.append((executable(x), module(x)))
    for found, wanted in kept:  # outputs of calls before are left alone
        torch.testing.assert_close(found, wanted)
    (graph,) = graphs
    assert len(graph.nodes) == 3
    assert graph.starts == 3
    assert set(graph.changed) == {0, 2}


def test_the_same_input_needs_no_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, x = Net(), R(5, 20)
    executable, (graphs) = recording(monkeypatch, module, (x,), tmp_path)
    for _ in range(4):
        found = executable(x)
    torch.testing.assert_close(found, module(x))
    assert 0 not in graphs[0].changed


def test_weights_that_change_are_recorded_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Softmax(1))
    module.eval()
    x = R(4, 8)
    executable, graphs = recording(monkeypatch, module, (x,), tmp_path)
    with torch.no_grad():
        for scale in (1, 2, 3):
            module[0].weight.mul_(scale)
            module[1].running_mean.add_(1)
            for _ in range(3):
                torch.testing.assert_close(executable(x), module(x))
    assert len(graphs) == 3


def test_each_size_has_its_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = Net()
    shapes = ({0: torch.export.Dim("batch", max=64)},)
    executable, graphs = recording(
        monkeypatch, module, (R(3, 20),), tmp_path, dynamic_shapes=shapes
    )
    with torch.no_grad():
        for batch in (3, 9, 3, 9, 3, 9):
            x = R(batch, 20)
            torch.testing.assert_close(executable(x), module(x))
    assert [g.starts for g in graphs] == [2, 2]


def test_states_and_overwritten_inputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(4, 3))

        def forward(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            self.seen.add_(x)
            out.mul_(2)
            return (self.seen * 10).softmax(0)

    module, eager = Cache(), Cache()
    executable, graphs = recording(monkeypatch, module, (R(4, 3), R(4, 3)), tmp_path)
    for _ in range(4):
        x, out = R(4, 3), R(4, 3)
        theirs = out.clone()
        torch.testing.assert_close(executable(x, out), eager(x, theirs))
        torch.testing.assert_close(out, theirs)
        torch.testing.assert_close(module.seen, eager.seen)
    assert [g.starts for g in graphs] == [3]


def test_branches_run_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kinds = ((24, True), (24, False), (28, True))  # different kernels
            self.parts = nn.ModuleList(nn.Linear(20, n, bias=b) for n, b in kinds)
            self.last = nn.Linear(28, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b, c = (part(x) for part in self.parts)
            found: torch.Tensor = self.last((a @ b.T).softmax(1) @ c)
            return found

    module = Branches()
    executable, graphs = recording(monkeypatch, module, (R(7, 20),), tmp_path)
    with torch.no_grad():
        for _ in range(8):
            x = R(7, 20)
            torch.testing.assert_close(executable(x), module(x))
    (graph,) = graphs
    assert sum(not w for w in graph.waits) == 3
    assert graph.waits[-1]


@pytest.mark.parametrize("seed", range(20))
def test_who_waits_for_whom(seed: int) -> None:
    """In every order that the waits allow, each kernel finds what it would find in turn."""
    draw = Random(seed)
    kernels = []
    for _ in range(draw.randrange(1, 14)):
        own = []
        for _ in range(draw.randrange(1, 4)):
            low = draw.randrange(20)
            own.append((low, low + draw.randrange(6), draw.random() < 0.4))
        kernels.append(own)
    waits = waits_of(kernels)

    def run(order: Sequence[int]) -> tuple[list[int], dict[int, tuple[int, ...]]]:
        memory, seen = list(range(26)), {}
        for n in order:
            seen[n] = tuple(memory[p] for low, high, _ in kernels[n] for p in range(low, high))
            for low, high, writes in kernels[n]:
                for place in range(low, high) if writes else ():
                    memory[place] = 1000 * (n + 1) + place
        return memory, seen

    wanted = run(range(len(kernels)))
    for _ in range(10):
        order: list[int] = []
        while len(order) < len(kernels):
            ready = [n for n, w in enumerate(waits) if n not in order and set(w) <= {*order}]
            order.append(draw.choice(ready))
        assert run(order) == wanted


def test_steps_of_a_recurrence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = nn.LSTM(6, 10, batch_first=True)
    executable, graphs = recording(monkeypatch, module, (R(3, 4, 6),), tmp_path)
    with torch.no_grad():
        for _ in range(3):
            x = R(3, 4, 6)
            torch.testing.assert_close(executable(x)[0], module(x)[0])
    assert graphs[0].starts == 2


def test_kernels_have_scratch_memory_of_their_own(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(40, 33), nn.ReLU(), nn.Linear(33, 20)).eval()
    made = built(module, (R(30, 40),), tmp_path)
    launches = tuple(replace(how, scratch_bytes=200) for how in made.manifest.launches)
    places: list[tuple[int, int]] = []

    def launch(programs: int, tensors: Sequence[Any], sizes: Sequence[int]) -> None:
        del tensors
        places.append((sizes[-1], programs * 200))

    executable = GpuExecutable(
        replace(made.manifest, launches=launches),
        [launch] * len(launches),
        made._arrays(),
        torch.device("cpu"),
    )
    executable(R(30, 40))
    assert len(places) == 2
    (first, size), (second, _) = places
    assert second - first >= size
    assert (second - first) % 128 == 0


def test_scratch_memory_lies_as_kernels_want_it() -> None:
    from nestor.codegen.triton import cubin  # which reads the environment: later than the helpers

    assert gpu_steps.SCRATCH_ALIGNMENT == cubin.SCRATCH_ALIGNMENT
