"""The in-arena placement: tensors that live at the same time never share bytes."""

from __future__ import annotations

from collections.abc import Sequence

from nestor.errors import IllegalSchedule

Slot = tuple[str, int, int, int, int]
"""(name, first use, last use, offset [bytes], size [bytes]); uses: kernel positions, inclusive."""


def check_memory_plan(slots: Sequence[Slot]) -> None:
    """Prove that no two slots overlap in time and in bytes.

    Sweeps over the kernel positions; only slots alive at once are compared.
    Raises: ``IllegalSchedule`` (question ``buffer``); the witness names the slots, the kernel
        position and a byte that both claim. ``ValueError`` for a slot that is not one.
    """
    for name, first, last, offset, size in slots:
        if last < first or offset < 0 or size < 0:
            raise ValueError(f"slot '{name}': uses {first}…{last}, offset {offset}, size {size}")
    live: list[Slot] = []
    for slot in sorted((s for s in slots if s[4] > 0), key=lambda s: s[1]):
        live = [s for s in live if s[2] >= slot[1]]
        for other in live:
            start = max(slot[3], other[3])
            if start < min(slot[3] + slot[4], other[3] + other[4]):
                raise IllegalSchedule(
                    f"the memory plan places '{other[0]}' and '{slot[0]}' over each other\n"
                    f"  both are alive at kernel {slot[1]} and own byte {start} of the arena",
                    question="buffer",
                    witness={"a": other, "b": slot, "kernel": slot[1], "byte": start},
                )
        live.append(slot)
