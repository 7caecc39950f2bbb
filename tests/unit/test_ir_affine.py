"""Affines: normal forms and simplification agree with Python's integers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestor.ir.affine import Affine, affine, floor_div, modulo
from nestor.ir.parser import parse_affine
from nestor.ir.printer import print_affine

NAMES = ("i", "j", "k", "N")
Case = tuple[Affine, "Tree"]
Tree = object


def trees(depth: int = 4) -> st.SearchStrategy[Tree]:
    """Index expressions as nested tuples, so that they have a meaning besides ``Affine``."""
    leaf = st.one_of(st.sampled_from(NAMES), st.integers(-20, 20))

    def extend(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        return st.one_of(
            st.tuples(st.sampled_from(["+", "-"]), inner, inner),
            st.tuples(st.just("*"), inner, st.integers(-9, 9)),
            st.tuples(st.sampled_from(["//", "%"]), inner, st.integers(1, 12)),
        )

    return st.recursive(leaf, extend, max_leaves=8)


def build(tree: Tree) -> Affine:
    if isinstance(tree, (str, int)):
        return affine(tree)
    op, a, b = tree  # type: ignore[misc]
    left = build(a)
    match op:
        case "+":
            return left + build(b)
        case "-":
            return left - build(b)
        case "*":
            return left * b
        case "//":
            return left // b
        case _:
            return left % b


def value(tree: Tree, env: dict[str, int]) -> int:
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return env[tree]
    op, a, b = tree  # type: ignore[misc]
    left = value(a, env)
    match op:
        case "+":
            return left + value(b, env)
        case "-":
            return left - value(b, env)
        case "*":
            return left * b
        case "//":
            return left // b
        case _:
            return left % b


envs = st.fixed_dictionaries({n: st.integers(-50, 50) for n in NAMES})


@given(trees(), envs)
@settings(max_examples=300, deadline=None)
def test_normal_forms_keep_the_value(tree: Tree, env: dict[str, int]) -> None:
    assert build(tree).evaluate(env) == value(tree, env)


@given(trees(), st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 12)), min_size=4, max_size=4))
@settings(max_examples=300, deadline=None)
def test_simplify_and_bounds_hold_over_the_ranges(tree: Tree, spans: list[tuple[int, int]]) -> None:
    ranges = {n: (low, low + extent) for n, (low, extent) in zip(NAMES, spans, strict=True)}
    expression = build(tree)
    simple = expression.simplify(ranges)
    low, high = expression.bounds(ranges)
    assert low is not None and high is not None
    for fraction in range(7):
        env = {n: lo + (hi - lo) * fraction * (k + 1) % max(1, hi - lo + 1)
               for k, (n, (lo, hi)) in enumerate(ranges.items())}  # fmt: skip
        want = value(tree, env)
        assert simple.evaluate(env) == want
        assert low <= want <= high


@given(trees())
@settings(max_examples=300, deadline=None)
def test_text_parses_back(tree: Tree) -> None:
    expression = build(tree)
    assert parse_affine(print_affine(expression)) == expression


@given(trees(), envs)
@settings(max_examples=200, deadline=None)
def test_the_text_means_in_python_what_it_means_here(tree: Tree, env: dict[str, int]) -> None:
    expression = build(tree)
    assert eval(str(expression), {}, dict(env)) == expression.evaluate(env)


@given(trees(), st.fixed_dictionaries({n: trees() for n in ("i", "j")}), envs)
@settings(max_examples=200, deadline=None)
def test_substitution_is_evaluation(
    tree: Tree, replacements: dict[str, Tree], env: dict[str, int]
) -> None:
    new = build(tree).substitute({n: build(t) for n, t in replacements.items()})
    inner = {**env, **{n: value(t, env) for n, t in replacements.items()}}
    assert new.evaluate(env) == value(tree, inner)


def test_tiles_of_a_known_size_fold() -> None:
    i, j = affine("i"), affine("j")
    ranges = {"j": (0, 7)}
    assert ((i * 8 + j) // 8).simplify(ranges) == i
    assert ((i * 8 + j) % 8).simplify(ranges) == j
    assert (i * 8 + j) // 4 == i * 2 + j // 4
    assert (i // 4) // 3 == i // 12
    assert ((i * 8 - j + 7) // 8).simplify(ranges) == i


def test_equal_values_have_one_form() -> None:
    i, j = affine("i"), affine("j")
    assert i + j - i == j
    assert (i + j) * 2 == j * 2 + i * 2
    assert hash(i + 3 - j) == hash(3 - (j - i))
    assert (i * 0).is_const


@pytest.mark.parametrize("bad", [0, -3])
def test_divisors_are_positive(bad: int) -> None:
    with pytest.raises(ValueError, match="positive constant"):
        floor_div("i", bad)
    with pytest.raises(ValueError, match="positive constant"):
        modulo("i", bad)
