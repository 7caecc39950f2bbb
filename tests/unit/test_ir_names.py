"""Fresh names."""

from __future__ import annotations

from nestor.ir.names import Names, fresh_name


def test_numbers_count_up_to_the_first_that_is_free() -> None:
    names = Names(["x", "x_1"])
    assert [names.fresh("x") for _ in range(3)] == ["x_2", "x_3", "x_4"]
    assert names.fresh("y") == "y"
    assert set(names) == {"x", "x_1", "x_2", "x_3", "x_4", "y"}


def test_separator_and_first_number() -> None:
    names = Names(separator=".", first=2)
    assert [names.fresh("i") for _ in range(3)] == ["i", "i.2", "i.3"]
    assert fresh_name("i", ["i", "i.1"], separator=".") == "i.2"


def test_what_is_asked_for_once_only_is_not_taken() -> None:
    taken = ["a"]
    assert fresh_name("a", taken) == fresh_name("a", taken) == "a_1"
