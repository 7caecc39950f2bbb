"""Features of schedules that start with a schedule tree: their loops are read off the nest."""

from __future__ import annotations

import numpy as np

from nestor.cost_model.features import KernelFeatures
from nestor.cost_model.kernel_facts import kernel_facts
from nestor.cost_model.loop_structure import loop_structure
from nestor.ir.parser import parse_nest, parse_program
from nestor.ir.schedule import Arrange
from nestor.ir.schedule_tree import Leaf
from nestor.target.cpu import CpuTarget

TARGET = CpuTarget(
    cpu="x86-64-v4", features=(), vector_bits=512, vector_registers=32, fma_bits_per_cycle=512
)

KERNEL = parse_program(
    """program kernel {
      input A: f32[64, 64]
      output B: f32[64, 64]
      statement S over { 0 <= i < 64, 0 <= j < 64 }
        B[i, j] = A[i, j] * 2.0:f32
    }"""
)
NEST = parse_nest(
    """nest kernel {
      input A: f32[64, 64]
      output B: f32[64, 64]
      parallel x in 0 .. 64 {
        for y in 0 .. 4 {
          vector z in 0 .. 16 {
            point S(i=x, j=16*y + z) {
              B[x, 16*y + z] = A[x, 16*y + z] * 2.0:f32
            }
          }
        }
      }
    }"""
)
SCHEDULE = (Arrange(tree=Leaf(statement="S")),)


def test_levels_come_from_the_nest() -> None:
    structure = loop_structure(kernel_facts(KERNEL), SCHEDULE, NEST)
    (loops,) = structure.statements
    assert [(x.name, x.kind, x.count) for x in loops.levels] == [
        ("x", "parallel", 64.0),
        ("y", "serial", 4.0),
        ("z", "vector", 16.0),
    ]
    assert [x.advance for x in loops.levels] == [(("i", 1),), (("j", 16),), (("j", 1),)]


def test_its_features_are_those_of_equal_steps() -> None:
    from nestor.ir.schedule import Parallel, Tile, Vectorize

    steps = (Tile(loop="S.j", size=16), Parallel(loop="S.i"), Vectorize(loop="S.j.i"))
    features = KernelFeatures(KERNEL, TARGET, 2)
    a, b = features.extract(SCHEDULE, nest=NEST), features.extract(steps)
    np.testing.assert_allclose(a, b, rtol=1e-6)
