"""When each tensor between kernels is alive: the input of the arena's placement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nestor.ir.program import Program


def tensor_lifetimes(program: Program, uses: Sequence[Iterable[str]]) -> dict[str, tuple[int, int]]:
    """First and last position in ``uses`` of every temp (aliases count for the tensor they alias).

    Args: uses: for each kernel in running order, the tensors that it reads or writes.
    Returns: temp → (first use, last use), positions in ``uses``, inclusive.
    """
    tensors = {t.name: t for t in program.tensors}
    spans: dict[str, tuple[int, int]] = {}
    for position, names in enumerate(uses):
        for name in names:
            root = name
            while (alias := tensors[root].alias_of) is not None:
                root = alias
            if tensors[root].role == "temp":
                first, _ = spans.get(root, (position, position))
                spans[root] = (first, position)
    return spans
