"""The C text of a small Program, word for word."""

from __future__ import annotations

from collections.abc import Callable

from nestor.codegen.c import print_c
from nestor.ir.parser import parse_program
from tests.helpers.c_programs import BY_HAND


def test_text_is_stable(golden: Callable[[str, str], None]) -> None:
    program = parse_program(BY_HAND)
    golden("c_by_hand.c", print_c(program, "by_hand", symbols={"N": 100}))
    golden("c_by_hand_symbolic.c", print_c(program, "by_hand"))


def test_restrict_is_a_choice() -> None:
    program = parse_program(BY_HAND)
    with_it, without = (print_c(program, "f", restrict=choice) for choice in (True, False))
    assert with_it.replace("*restrict ", "*") == without
    assert "restrict" not in without
