"""LLVM 22 loaded the operand of a masked multiply-add without the mask: past the end of an array.

``tmp[i] += A[i, j] * x[j]`` with a tail of ``j``, on the last rows of an array before a page that
nobody may touch.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.polybench import registry
from nestor.autotune.measuring import Candidate, Measurer
from nestor.autotune.pairing import PairPolicy
from nestor.config import Config


@pytest.mark.parametrize("columns", [42, 43, 45])
def test_the_tail_of_a_row_at_the_end_of_memory(columns: int, tmp_path: Path) -> None:
    kernel = registry.kernel("atax", reassociate=True, threads=1)
    sizes = {"M": 38, "N": columns}
    native = kernel._variants.for_sizes(sizes)
    default = Candidate(kernel=native.program, schedule=native.compiled.schedule)
    config = Config(cache_dir=tmp_path)
    with Measurer(native.target, threads=1, config=config) as measurer:
        (found,) = measurer.measure(
            [default], default, sizes=sizes, policy=PairPolicy(least=1, most=1)
        )
    assert found.status == "ok", found.detail
