"""Arena plans: no overlap, near the lower bound, checked independently."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestor.errors import InternalError
from nestor.runtime.arena import Arena, check_plan, peak_live_bytes, plan_arena

lifetimes_and_sizes = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5000)), max_size=30
)


@settings(max_examples=200, deadline=None)
@given(lifetimes_and_sizes)
def test_arrays_alive_together_share_no_byte(items):
    lifetimes = [(min(a, b), max(a, b)) for a, b, _ in items]
    sizes = [s for _, _, s in items]
    plan = plan_arena(lifetimes, sizes)
    for i, (first, last) in enumerate(lifetimes):
        assert plan.offsets[i] % 64 == 0
        assert plan.offsets[i] + sizes[i] <= plan.total
        for j in range(i):
            together = lifetimes[j][0] <= last and first <= lifetimes[j][1]
            apart = (
                plan.offsets[i] + sizes[i] <= plan.offsets[j]
                or plan.offsets[j] + sizes[j] <= plan.offsets[i]
            )
            assert not together or apart or 0 in (sizes[i], sizes[j])
    assert plan.lower_bound <= plan.total <= sum(-(-s // 64) * 64 for s in sizes)


def test_a_chain_takes_two_buffers():
    plan = plan_arena([(i, i + 1) for i in range(50)], [4096] * 50)
    assert plan.total == plan.lower_bound == 8192


def test_a_network_is_near_the_lower_bound():
    source = random.Random(3)
    lifetimes, sizes = [], []
    for step in range(400):
        lifetimes.append((step, step + source.choice([1, 1, 1, 2, 3, 12])))
        sizes.append(source.choice([64, 256, 1024, 4096]) * 1024)
    plan = plan_arena(lifetimes, sizes)
    assert plan.total <= 1.15 * plan.lower_bound


def test_nothing_takes_nothing():
    assert plan_arena([], []).total == 0
    assert plan_arena([(0, 5)], [0]).total == 0


def test_lower_bound_counts_both_ends():
    assert peak_live_bytes([(0, 1), (1, 2), (2, 3)], [10, 20, 40]) == 60


@pytest.mark.parametrize(
    ("lifetimes", "offsets", "total"),
    [
        ([(0, 1), (1, 2)], [0, 63], 200),  # one shared byte at position 1
        ([(0, 1), (1, 2)], [0, 64], 127),  # one byte over the end
        ([(0, 1), (2, 1)], [0, 64], 128),  # ends before it begins
        ([(0, 1), (1, 2)], [0, -64], 128),
    ],
)
def test_the_check_finds_planted_faults(lifetimes, offsets, total):
    with pytest.raises(InternalError, match="arena plan"):
        check_plan(lifetimes, [64, 64], offsets, total)


def test_arena_grows_and_is_aligned():
    arena = Arena()
    small = arena.reserve(100)
    assert small % 4096 == 0
    assert arena.reserve(4096) == small
    huge = arena.reserve(64 << 20)
    assert huge % (2 << 20) == 0
    assert arena.size == 64 << 20
    assert arena.reserve(100) == huge
