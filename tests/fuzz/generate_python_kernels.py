"""Random functions of the kernel language, as text.

Arrays have room for every index that can come up; scalars are assigned, carried and conditioned at
random, so that some functions read a scalar before it has a value: Python raises for those.
"""

from __future__ import annotations

import random

ARRAYS = {"A": 2, "B": 1, "C": 1}
"""Arrays of f64 by rank; each dimension has N + 8 elements."""

HEAD = """import math

import numpy as np

import nestor


@nestor.kernel(contract=False)
def made(n: int, A: nestor.f64["N + 8", "N + 8"], B: nestor.f64["N + 8"], C: nestor.f64["N + 8"],
         I: nestor.i64["N + 8"], p: nestor.f64, q: float):
"""


class Writer:
    """Writes one function."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.loops: list[str] = []
        self.budget = self.random.randint(4, 14)
        self.known: list[str] = []

    def text(self) -> str:
        """The module's text."""
        for name in "stumr":
            if self.random.random() < 0.6:
                value = self.value(1) if name in "stu" else self.index()
                self.put(1, f"{name} = {value}")
                self.known.append(name)
        while self.budget > 0:
            self.statement(1)
        return HEAD + "\n".join(self.lines) + "\n"

    def put(self, depth: int, line: str) -> None:
        """One line of the function."""
        self.lines.append("    " * depth + line)

    def block(self, depth: int) -> None:
        """One to three statements."""
        for _ in range(self.random.randint(1, 3)):
            self.statement(depth)

    def statement(self, depth: int) -> None:
        """Any statement."""
        self.budget -= 1
        pick = self.random.random()
        if pick < 0.3 and len(self.loops) < 3:
            self.loop(depth)
        elif pick < 0.45 and depth < 6:
            self.branch(depth)
        elif pick < 0.62:
            self.scalar(depth)
        else:
            op = self.random.choice(["=", "=", "+=", "-=", "*="])
            self.put(depth, f"{self.element()} {op} {self.value(2)}")

    def loop(self, depth: int) -> None:
        """A loop over indices between 0 and N + 2."""
        name = next(n for n in "ijk" if n not in self.loops)
        lower = self.random.choice(["0", "1", "2", *self.loops])
        upper = self.random.choice(["N", "N - 1", "N + 2", "3", "min(n, N)", "min(N, 4)"])
        form = self.random.choice(["up", "up", "up", "two", "down", "triangle", "max"])
        ranges = {
            "up": f"range({upper})",
            "two": f"range({self.random.choice(['0', '1'])}, {upper}, {self.random.choice('23')})",
            "down": f"range({upper} - 1, {self.random.choice(['-1', '0'])}, -1)",
            "triangle": f"range({lower}, {upper})",
            "max": f"range(max({lower}, 1), min({upper}, N))",
        }
        self.put(depth, f"for {name} in {ranges[form]}:")
        self.loops.append(name)
        self.block(depth + 1)
        self.loops.pop()

    def branch(self, depth: int) -> None:
        """An `if`, on indices or on data."""
        self.put(depth, f"if {self.condition()}:")
        self.block(depth + 1)
        if self.random.random() < 0.25:
            self.put(depth, f"elif {self.condition()}:")
            self.block(depth + 1)
        if self.random.random() < 0.5:
            self.put(depth, "else:")
            self.block(depth + 1)

    def condition(self) -> str:
        """An affine condition, one on data, or both."""
        affine = [f"{i} {c} {j}" for i in self.loops for c in ("<", "==", "!=", ">=") for j in
                  (*self.loops, "2", "N - 2", "n")]  # fmt: skip
        affine += [f"{i} % 2 == 0" for i in self.loops] + ["n > 2", "N < 3"]
        data = [f"{self.value(1)} {c} {self.value(0)}" for c in ("<", ">=")]
        first = self.random.choice(affine if self.random.random() < 0.6 else data)
        if self.random.random() < 0.3:
            second = self.random.choice(affine + data)
            return f"{first} {self.random.choice(['and', 'or'])} {second}"
        return f"not ({first})" if self.random.random() < 0.15 else first

    def scalar(self, depth: int) -> None:
        """An assignment to a scalar."""
        if self.random.random() < 0.25:
            name = self.random.choice(["m", "r"])
            self.put(depth, f"{name} = {self.index()}")
            self.known.append(name)
            return
        name = self.random.choice(["s", "t", "u"])
        op = self.random.choice(["=", "=", "=", "+=", "-="])
        if name not in self.known:
            op = "="
        self.put(depth, f"{name} {op} {self.value(2)}")
        self.known.append(name)

    def index(self) -> str:
        """An integer between 0 and N + 7."""
        choices = [f"{i} + {self.random.randint(0, 3)}" for i in self.loops]
        choices += [*self.loops, *self.loops, "0", "2", "N", "N + 1", "N // 2"]
        choices += [f"{i} // 2" for i in self.loops] + [f"N + 2 - {i}" for i in self.loops]
        return self.random.choice(choices)

    def subscript(self) -> str:
        """An index of an array: affine, a scalar, or data."""
        pick = self.random.random()
        scalars = sorted({"m", "r"} & set(self.known))
        if pick < 0.15 and scalars:
            return self.random.choice(scalars)
        if pick < 0.25:
            return f"I[{self.index()}]"
        return self.index()

    def element(self) -> str:
        """An array element."""
        name = self.random.choice(list(ARRAYS))
        indices = [self.subscript() for _ in range(ARRAYS[name])]
        if len(indices) == 2 and self.random.random() < 0.3:
            return f"{name}[{indices[0]}][{indices[1]}]"
        return f"{name}[{', '.join(indices)}]"

    def value(self, depth: int) -> str:
        """A float expression."""
        pick = self.random.random()
        if depth == 0 or pick < 0.35:
            leaves = ["0.5", "2.0", "p", "q", "-1.0", self.element(), self.element()]
            leaves += [n for n in "stu" if n in self.known] * 2
            leaves += [f"{i} * 0.25" for i in self.loops]
            return self.random.choice(leaves)
        if pick < 0.75:
            op = self.random.choice("++--**/")
            return f"({self.value(depth - 1)} {op} {self.value(depth - 1)})" if op != "/" else (
                f"({self.value(depth - 1)} / 4.0)"
            )  # fmt: skip
        if pick < 0.85:
            return f"({self.value(depth - 1)} if {self.condition()} else {self.value(depth - 1)})"
        name = self.random.choice(["abs", "np.maximum", "np.minimum"])
        if name == "abs":
            return f"abs({self.value(depth - 1)})"
        return f"{name}({self.value(depth - 1)}, {self.value(depth - 1)})"
