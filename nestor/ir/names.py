"""Names that are not taken."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator


def fresh_name(wish: str, taken: Container[str], *, separator: str = "_", first: int = 1) -> str:
    """``wish`` if it is free, else the first of ``wish_1``, ``wish_2``, … that is.

    Args: separator: before the number. first: the number to start with; 2 where ``wish`` is to
        count as the first.
    """
    name, number = wish, first
    while name in taken:
        name, number = f"{wish}{separator}{number}", number + 1
    return name


class Names:
    """Hands out names, each once; see ``fresh_name`` for the arguments."""

    def __init__(self, taken: Iterable[str] = (), *, separator: str = "_", first: int = 1):
        self._taken = set(taken)
        self._separator, self._first = separator, first

    def __iter__(self) -> Iterator[str]:
        return iter(self._taken)

    def fresh(self, wish: str) -> str:
        """A name that nobody has; it is taken from now on."""
        name = fresh_name(wish, self._taken, separator=self._separator, first=self._first)
        self._taken.add(name)
        return name
