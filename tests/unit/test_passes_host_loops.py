"""Sequential loops that leave a Program, and the kernels that stay together in them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nestor.errors import InternalError, Unsupported
from nestor.ir.program import Program, Statement
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_fusion import partition_for_gpu
from nestor.passes.host_loops import take_out_loops
from nestor.passes.rewriting import renumber
from tests.helpers import ir_programs as programs


def changed(program: Program, name: str, **fields: object) -> Program:
    """A Program with other fields of one statement."""
    return replace(
        program,
        statements=tuple(
            replace(s, **fields) if s.name == name else s  # type: ignore[arg-type]
            for s in program.statements
        ),
    )


def test_one_step_of_a_recurrence() -> None:
    program = programs.lstm(steps=6)
    main, (loop,) = take_out_loops(program)
    assert loop.statements == {"gates", "cell", "hidden"}
    assert str(loop.extent) == "6"
    (symbol,) = (s for s in main.symbols if s.name == loop.symbol)
    assert (symbol.lower, symbol.upper) == (0, 5)
    assert [len(s.order) for s in main.statements] == [1, 1, 1, 1]
    for s in main.statements:
        assert isinstance(s, Statement)
        assert ("t" in s.domain.names) == (s.name == "inputs")


def test_a_program_without_loops_stays() -> None:
    program = programs.softmax()
    main, loops = take_out_loops(program)
    assert loops == ()
    assert [s.name for s in main.statements] == [s.name for s in program.statements]


def test_loops_in_loops_are_refused() -> None:
    program = changed(programs.lstm(), "cell", order=(1, "t", 1, "n", 0))
    with pytest.raises(Unsupported, match="'cell' runs in a loop within a loop"):
        take_out_loops(program)


def test_kernels_of_a_loop_stand_side_by_side() -> None:
    partition = partition_for_gpu(programs.lstm(), l2_bytes=1 << 20, processors=8)
    ((loop, first, last),) = partition.loops
    inside = partition.parts[first:last]
    names = {s.name for p in inside if isinstance(p, FusedKernel) for s in p.kernel.statements}
    assert names == loop.statements
    for part in partition.parts:
        assert isinstance(part, FusedKernel)
        own = {s.name for s in part.kernel.statements}
        assert own <= loop.statements or not own & loop.statements


def test_what_a_step_leaves_is_no_temp_of_a_kernel() -> None:
    """Also where one kernel alone reads and writes it."""
    program = programs.lstm()
    tensors = tuple(replace(t, role="temp") if t.name == "Cs" else t for t in program.tensors)
    program = replace(program, tensors=tensors)
    partition = partition_for_gpu(program, l2_bytes=1 << 20, processors=8)
    roles = {
        t.role
        for p in partition.parts
        if isinstance(p, FusedKernel)
        for t in p.kernel.tensors
        if t.name == "Cs"
    }
    assert "temp" not in roles


def test_what_stands_in_a_region_goes_before_it() -> None:
    """As a sum of weights that a pass takes out of a statement of the region."""
    program = programs.lstm()
    inputs, gates, cell, hidden = program.statements
    assert isinstance(inputs, Statement)
    elsewhere = replace(inputs.writes[0], tensor="Q")
    plain = replace(inputs, name="plain", writes=(elsewhere,), order=(1,))
    moved = renumber([inputs, gates, plain, cell, hidden])
    assert [(s.name, s.order) for s in moved] == [
        ("inputs", (0,)),
        ("plain", (1,)),
        ("gates", (2, "t", 0)),
        ("cell", (2, "t", 1)),
        ("hidden", (2, "t", 2)),
    ]


def test_what_needs_the_region_cannot_stand_in_it() -> None:
    program = programs.lstm()
    _, gates, cell, hidden = program.statements
    assert isinstance(cell, Statement)
    late = replace(cell, name="late", order=(1,))
    with pytest.raises(InternalError, match="late stand among statements that run step by step"):
        renumber([gates, late, cell, hidden])
