"""Huge pages where they fit whole, and no page faults once a model has been called."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import nestor
from nestor.runtime.memory import HUGE_PAGE, Mapping

SMAPS = Path("/proc/self/smaps")


def flags_at(address: int) -> set[str]:
    """The system's flags of the memory at an address; ``hg`` asks for huge pages."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("nothing is mapped there")


@pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux's /proc/self/smaps")
@pytest.mark.parametrize(
    ("size", "used", "whole"),
    [
        (3 * HUGE_PAGE, None, 3),
        (2 * HUGE_PAGE + 4096, None, 2),
        (3 * HUGE_PAGE, 2 * HUGE_PAGE + 1, 2),
        (2 * HUGE_PAGE, 100, 0),
        (2 * HUGE_PAGE - 4096, None, 0),
    ],
)
def test_only_whole_pages_are_huge(size: int, used: int | None, whole: int) -> None:
    mapping = Mapping(size, used=used)
    pages = [flags_at(a) for a in range(mapping.address, mapping.address + size, HUGE_PAGE)]
    assert ["hg" in flags for flags in pages] == [n < whole for n in range(len(pages))]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Calls run on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kibibytes", [20, 200, 900, 1500, 5000, 12000])
def test_later_calls_fault_no_pages(kibibytes: int, two_threads: None) -> None:
    """Outputs below and above the size from which they come from the pool."""
    inputs = (torch.randn(kibibytes, 256),)
    compiled = nestor.compile(nn.GELU(), inputs)
    rounds = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            output = compiled(*inputs)
        rounds.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # Memory fresh for each output would fault each 4 KiB of it (2 MiB where pages are huge) in each
    # call. The C library takes a new block now and then, so the best round counts.
    assert min(rounds) <= 5, f"{rounds} page faults in rounds of 20 calls"
    assert output.shape == (kibibytes, 256)
