"""Calls of one kernel that do not need each other are started as one.

The three projections before an attention are products of the same rows by other weights: one kernel
whose programs are those of all of them. The host, or the graph, starts one kernel, and the last
programs of one call run beside the first of the next.
"""

from __future__ import annotations

import time
from dataclasses import replace
from math import prod

from nestor.codegen.triton import Siblings
from nestor.compiler import Call
from nestor.gpu_program import GpuProgram
from nestor.ir.program import Extern
from nestor.passes.gpu_schedule import warps_of

MOST_SIBLINGS = 8
"""Calls that are started as one."""

MOST_APART = 24
"""Calls that one may be moved over."""

_OWN = ("temp", "output")
"""Roles of arrays that no other array shares its memory with."""


def join_siblings(program: GpuProgram) -> None:
    """Join calls, within a loop of the host or outside of all.

    Legality: a call moves up to one with the same kernel and sizes, over calls, and into others,
    that write nothing it touches and touch nothing it writes. What it makes is then kept for
    longer, so only calls that make little are moved over others.
    """
    _Joining(program).run()


class _Joining:
    def __init__(self, program: GpuProgram):
        self.program = program
        tensors = {t.name: t for t in program.main.tensors}
        self.roots: list[str] = []
        for slot in program.slots:
            name = slot.tensor.name
            while (of := tensors[name].alias_of if name in tensors else None) is not None:
                name = of
            self.roots.append(name)
        self.shared = {name for name, t in tensors.items() if t.role not in _OWN}
        self.groups: list[list[Call | Extern]] = []
        self.touched: list[tuple[set[str], set[str]] | None] = []

    def run(self) -> None:
        """Group the calls, and write the kernels of groups."""
        program = self.program
        bounds = {bound for first, last, _ in program.loops for bound in (first, last)}
        place = {0: 0}  # of a loop's bounds, among the groups
        first = 0
        for position, call in enumerate(program.calls):
            if position in bounds:
                first = place[position] = len(self.groups)
            self._add(call, first)
        place[len(program.calls)] = len(self.groups)
        program.loops = tuple((place[a], place[b], extent) for a, b, extent in program.loops)
        program.calls = [self._joined(group) for group in self.groups]
        used = {c.key for c in program.calls if isinstance(c, Call)}
        program.kernels = {key: made for key, made in program.kernels.items() if key in used}

    def _add(self, call: Call | Extern, first: int) -> None:
        """Put a call into a group, from the group ``first`` on, or into one of its own."""
        own = self._touches(call) if isinstance(call, Call) else None
        if isinstance(call, Call) and own is not None:
            found = self._sibling(call, own, first)
            before = self.touched[found] if found is not None else None
            if found is not None and before is not None:
                self.groups[found].append(call)
                self.touched[found] = (before[0] | own[0], before[1] | own[1])
                return
        self.groups.append([call])
        self.touched.append(own)

    def _touches(self, call: Call) -> tuple[set[str], set[str]] | None:
        """Arrays that a call touches, and those that it writes; None if it stays where it is."""
        made = self.program.kernels[call.key]
        names = [self.roots[slot] for slot in call.slots]
        written = {names[n] for n in made.triton.written}
        # An array of the caller's may be another one, too.
        return None if written & self.shared else (set(names), written)

    def _sibling(self, call: Call, own: tuple[set[str], set[str]], first: int) -> int | None:
        """The group that a call joins."""
        if warps_of(self.program.kernels[call.key].schedule).descriptors:
            return None  # these are made before a program knows whose it is
        for n in range(len(self.groups) - 1, max(first, len(self.groups) - MOST_APART) - 1, -1):
            other = self.touched[n]
            if other is None or other[1] & own[0] or other[0] & own[1]:
                return None
            head = self.groups[n][0]
            if isinstance(head, Call) and (head.key, head.symbols) == (call.key, call.symbols):
                is_near = n == len(self.groups) - 1 or self._is_small(call)
                return n if is_near and len(self.groups[n]) < MOST_SIBLINGS else None
        return None

    def _is_small(self, call: Call) -> bool:
        """Whether what a call makes may be kept while others run: all siblings' lies in L2."""
        made = self.program.kernels[call.key]
        written = [self.program.slots[call.slots[n]].tensor for n in made.triton.written]
        if not all(e.is_const for t in written for e in t.shape):
            return False
        size = sum(prod(e.const for e in t.shape) * t.dtype.bytes for t in written)
        return size * MOST_SIBLINGS <= made.job.target.l2_bytes

    def _joined(self, group: list[Call | Extern]) -> Call | Extern:
        """One call for all of a group; its kernel is written if there is none yet."""
        calls = [c for c in group if isinstance(c, Call)]
        if len(calls) < 2:
            return group[0]
        head = calls[0]
        plain = self.program.kernels[head.key]
        own = [len(set(slots)) > 1 for slots in zip(*(c.slots for c in calls))]
        key = f"{head.key}-{len(calls)}x{''.join('01'[is_own] for is_own in own)}"
        if key not in self.program.kernels:
            clock = time.perf_counter()
            apart = frozenset(n for n, is_own in zip(plain.triton.tensors, own) if is_own)
            triton = plain.job.source(plain.nest, Siblings(len(calls), apart))
            seconds = time.perf_counter() - clock
            self.program.kernels[key] = replace(
                plain, triton=triton, seconds=seconds, calls=len(calls)
            )
        return Call(
            key=key,
            slots=tuple(
                slot
                for n, is_own in enumerate(own)
                for slot in ([c.slots[n] for c in calls] if is_own else [head.slots[n]])
            ),
            symbols=head.symbols,
            statements=tuple(s for c in calls for s in c.statements),
            origins=tuple(dict.fromkeys(o for c in calls for o in c.origins)),
        )
