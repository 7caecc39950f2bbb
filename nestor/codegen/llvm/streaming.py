"""Stores past the caches, for outputs that would have left them before anybody reads them.

A store to a line that no cache holds first reads the line: a third of the traffic of a copy. A
non-temporal store of a whole line does not (measured on Zen 4 with two threads: 51 GB/s instead of
36 GB/s of bytes read and written). It also keeps the line out of the caches, so it pays only where
the kernel moves much more than they hold.

Such a region exists twice: this way and plainly. Which one runs is decided by the addresses of the
outputs (whole lines need alignment, which callers do not owe) and, where sizes are known at run
time only, by the bytes that the kernel moves. Non-temporal stores of a thread are ordered against
what follows by the fence at the end of its part, not by the team's barrier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from nestor.codegen.llvm.builder import Val, int_val
from nestor.codegen.llvm.context import Context
from nestor.codegen.llvm.indexing import scalar_affine
from nestor.codegen.llvm.storage import tensor_storage
from nestor.codegen.llvm.types import MEMORY_TYPE, TYPE_BYTES
from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, loads
from nestor.ir.loopnest import Compute, Node, computes
from nestor.ir.program import Tensor
from nestor.target.cpu import CpuTarget

CACHES = 2
"""A kernel that moves this many last-level caches leaves less than half of its outputs there."""

MIN_OUTPUT_PART = 8
"""A smaller part of the last-level cache than one in this many is not worth a second version."""

MAX_SYMBOLIC_COMPUTES = 8
"""A nest of unknown size gets a second version only if it is short: most calls will not use it."""

LINE_BYTES = 64


def stream_limit(target: CpuTarget) -> int:
    """From how many bytes on a kernel streams [bytes]."""
    return CACHES * target.l3_bytes


def tensor_bytes(tensor: Tensor) -> int | None:
    """Size in memory [bytes]; None if symbolic."""
    shape = tensor.shape if tensor.layout is None else tensor.layout.shape
    if not all(e.is_const for e in shape):
        return None
    return TYPE_BYTES[MEMORY_TYPE[tensor.dtype]] * prod(e.const for e in shape)


def depends_on_caches(tensors: Iterable[Tensor], target: CpuTarget) -> int | None:
    """What code for a kernel of ``tensors`` may owe to the size of the caches: a limit [bytes], or
    None if it is sure to be below."""
    sizes = [tensor_bytes(t) for t in tensors]
    known = sum(size for size in sizes if size is not None)
    return stream_limit(target) if None in sizes or known >= stream_limit(target) else None


def streamed_tensors(ctx: Context, body: Node) -> tuple[str, ...]:
    """Tensors that ``body`` may write past the caches: large, and only written by the kernel."""
    info = ctx.info
    if not _is_large(ctx, body):
        return ()
    found: dict[str, None] = {}
    for compute in computes(body):
        for store in compute.stores:
            tensor = info.tensors.get(store.target)
            if tensor is None or info.roots[store.target] in info.read:
                continue
            size = tensor_bytes(tensor)
            if size is None or size >= ctx.target.l3_bytes // MIN_OUTPUT_PART:
                found[store.target] = None
    return tuple(found)


def _is_large(ctx: Context, body: Node) -> bool:
    """Whether the kernel moves more than the caches hold, or may."""
    moved = list(_moved(ctx))
    sizes = [tensor_bytes(t) for t in moved]
    if None in sizes:
        return sum(1 for _ in computes(body)) <= MAX_SYMBOLIC_COMPUTES
    return sum(size for size in sizes if size is not None) >= stream_limit(ctx.target)


def _moved(ctx: Context) -> Iterator[Tensor]:
    """The tensors that the kernel goes through, each memory once; not those it picks from."""
    info = ctx.info
    seen: set[str] = set()
    for name, tensor in info.tensors.items():
        root = info.roots[name]
        if root not in seen and root not in info.picked:
            seen.add(root)
            yield tensor


def read_roots(body: Node, roots: dict[str, str]) -> tuple[frozenset[str], frozenset[str]]:
    """(what a nest reads or accumulates into, what it reads by indices that depend on data)."""
    read: set[str] = set()
    picked: set[str] = set()
    for compute in computes(body):
        for value in (*compute.values, *_index_values(compute)):
            for x in loads(value):
                if x.tensor in roots:
                    read.add(roots[x.tensor])
                    if not all(isinstance(i, Affine) for i in x.indices):
                        picked.add(roots[x.tensor])
        for store in compute.stores:
            scattered = not all(isinstance(i, Affine) for i in store.indices)
            if store.target in roots and (compute.monoid is not None or scattered):
                read.add(roots[store.target])
    return frozenset(read), frozenset(picked)


def _index_values(compute: Compute) -> Iterator[Expr]:
    for store in compute.stores:
        yield from (i for i in store.indices if not isinstance(i, Affine))


def streaming_test(ctx: Context, tensors: tuple[str, ...]) -> Val:
    """i1: the outputs start at cache lines, and the kernel moves more than the caches hold."""
    fb = ctx.fb
    together: Val | None = None
    for name in tensors:
        pointer = tensor_storage(ctx, name).pointer
        address = fb.convert("ptrtoint", pointer, "i64")
        together = address if together is None else fb.op("or", together, address)
    assert together is not None
    low = fb.op("and", together, int_val(LINE_BYTES - 1))
    test = fb.compare("icmp eq", low, int_val(0))
    total = _moved_bytes(ctx)
    if total is not None:
        large = fb.compare("icmp sge", total, int_val(stream_limit(ctx.target)))
        test = fb.op("and", test, large)
    return test


def _moved_bytes(ctx: Context) -> Val | None:
    """Bytes of all tensors at run time; None if known to be enough."""
    fb, known = ctx.fb, 0
    total: Val | None = None
    for tensor in _moved(ctx):
        size = tensor_bytes(tensor)
        if size is not None:
            known += size
            continue
        shape = tensor.shape if tensor.layout is None else tensor.layout.shape
        factor = TYPE_BYTES[MEMORY_TYPE[tensor.dtype]]
        factor *= prod(e.const for e in shape if e.is_const)
        product = int_val(factor)
        for extent in shape:
            if not extent.is_const:
                product = fb.op("mul", product, scalar_affine(ctx, extent))
        total = product if total is None else fb.op("add", total, product)
    return None if total is None else fb.op("add", total, int_val(known))


def fence(ctx: Context) -> None:
    """What was stored past the caches is visible before what follows."""
    name = ctx.fb.module.declare("llvm.x86.sse.sfence", "void", "")
    ctx.fb.line(f"call void {name}()")
