"""The text of Programs, LoopNests and the verifier's messages, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nestor.ir.hashing import canonicalize
from nestor.ir.parser import parse_nest
from nestor.ir.printer import print_nest, print_program
from tests.helpers import ir_nests
from tests.helpers import ir_programs as P

Golden = Callable[[str, str], None]


@pytest.mark.parametrize("name", sorted(P.ALL))
def test_programs(name: str, golden: Golden) -> None:
    golden(f"ir_program_{name}.txt", print_program(P.ALL[name]()))


def test_symbols_and_constraints(golden: Golden) -> None:
    golden("ir_program_softmax_symbolic.txt", print_program(P.softmax("N")))
    golden("ir_program_attention_causal.txt", print_program(P.attention(causal=True)))


def test_canonical_names(golden: Golden) -> None:
    golden("ir_program_lstm_canonical.txt", print_program(canonicalize(P.lstm())[0]))


@pytest.mark.parametrize("name", ["TILED_MATMUL", "SPLIT_SUM", "EVERYTHING"])
def test_nests(name: str, golden: Golden) -> None:
    golden(f"ir_nest_{name.lower()}.txt", print_nest(parse_nest(getattr(ir_nests, name))))
