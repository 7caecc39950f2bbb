"""Random loop nests that give the untuned heuristic something to do, as text.

Products, sums, minima, stencils, recurrences, triangular and strided loops, time loops, statements
at several depths, scalars, transposed and gathered reads. Every array is larger than what the loops
reach by ``MARGIN`` in front and behind, so every size is allowed and a stray write is seen.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

MARGIN = 4
"""Elements in front of and behind what a loop of full length visits."""

SIZES = ("N", "M", "K")
SHAPES: dict[str, tuple[str, ...]] = {
    "A": ("N", "K"),
    "B": ("K", "M"),
    "C": ("N", "M"),
    "D": ("N", "N"),
    "E": ("N", "N"),
    "x": ("N",),
    "y": ("M",),
    "z": ("K",),
    "w": ("N",),
    "G": ("N", "M", "K"),
    "L": ("N", "M"),
    "v": ("M",),
}
"""Dimensions of the arrays; each gets twice ``MARGIN`` more."""

SPECIAL: dict[str, tuple[str, ...]] = {
    "P": ("N + M",),
    "Q": ("2*N",),
    "R": ("2", "N"),
    "H": ("T", "N"),
}
"""Arrays with indices that are sums of loops, twice a loop, or time."""

LOCAL = ("L", "v")
"""Arrays of the function itself, in those that have any."""

CONTRACTIONS = (
    ("NMK", "C[{0}, {1}]", "A[{0}, {2}]", "B[{2}, {1}]"),
    ("NMN", "C[{0}, {1}]", "D[{0}, {2}]", "C[{2}, {1}]"),
    ("NMN", "C[{0}, {1}]", "D[{2}, {0}]", "E[{2}, {0}]"),
    ("NMN", "C[{0}, {1}]", "D[{0}, {2}]", "y[{1}]"),
    ("NNK", "D[{0}, {1}]", "A[{0}, {2}]", "A[{1}, {2}]"),
    ("NNN", "D[{0}, {1}]", "D[{0}, {2}]", "D[{2}, {1}]"),
    ("NNN", "D[{0}, {1}]", "D[{0}, {2}]", "D[{1}, {2}]"),
    ("NNN", "D[{0}, {1}]", "E[{2}, {0}]", "E[{2}, {1}]"),
    ("NMK", "C[{0}, {1}]", "G[{0}, {1}, {2}]", "z[{2}]"),
    ("NMK", "A[{0}, {2}]", "G[{0}, {1}, {2}]", "y[{1}]"),
    ("NKM", "G[{0}, {2}, {1}]", "A[{0}, {1}]", "y[{2}]"),
    ("NN", "x[{0}]", "D[{0}, {1}]", "x[{1}]"),
    ("NN", "x[{0}]", "D[{1}, {0}]", "w[{1}]"),
    ("NM", "y[{1}]", "C[{0}, {1}]", "x[{0}]"),
)
"""Sizes of loops, an element that accumulates, and what is multiplied into it."""

LOOPS = "ijkl"


@dataclass
class Made:
    """A generated module, and what running it needs.

    Attributes: text: of the module; its kernel is ``made``. arrays: type and shape of the used
        ones, in order. has_time: the first argument is a number of time steps. has_index: the last
        one is ``I``. nests: of each loop, the sizes that it and those around it run over.
    """

    text: str
    arrays: dict[str, tuple[str, tuple[str, ...]]]
    has_time: bool
    has_index: bool
    nests: tuple[tuple[str, ...], ...]

    def shape(self, name: str, sizes: dict[str, int]) -> tuple[int, ...]:
        """Of an array, where the names of sizes, ``T`` among them, have these values."""
        return tuple(eval(size, {}, sizes) + 2 * MARGIN for size in self.arrays[name][1])

    def work(self, sizes: dict[str, int]) -> int:
        """About how many iterations one time step has."""
        return sum(math.prod(sizes[size] for size in nest) for nest in self.nests)


@dataclass
class Loop:
    """A loop around: its index and the size that it runs over."""

    name: str
    size: str


@dataclass
class NestWriter:
    """Writes one function."""

    seed: int
    lines: list[str] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    sizes: set[str] = field(default_factory=set)
    nests: list[tuple[str, ...]] = field(default_factory=list)
    has_index: bool = False
    scalars: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.dtype = self.random.choice(["f64", "f64", "f32", "i32", "mixed"])
        self.has_time = self.random.random() < 0.3
        self.names = [n for n in SHAPES if n not in LOCAL or self.random.random() < 0.2]
        self.may_branch = self.random.random() < 0.3

    def made(self, *, reassociate: bool) -> Made:
        """The module."""
        depth = 1
        kinds = ("f32", "f64") if self.dtype == "mixed" else (self.dtype,)
        for name in LOCAL:
            if name in self.names:
                dims = ", ".join(f"{size} + {2 * MARGIN}" for size in SHAPES[name])
                self.put(1, f"{name} = nestor.zeros(({dims},), nestor.{self.random.choice(kinds)})")
                self.sizes.update(SHAPES[name])
        if self.has_time:
            self.put(1, "for t in range(T):")
            depth = 2
        for _ in range(self.random.choice([1, 1, 2, 2, 3])):
            self.nest(depth)
        # A size that only bounds a loop is still an array's: calls have it from there.
        self.used.update({"N": "x", "M": "y", "K": "z"}[size] for size in self.sizes)
        shapes = {n: s for n, s in (SHAPES | SPECIAL).items() if n in self.used - {*LOCAL}}
        arrays = {n: (self.random.choice(kinds), shape) for n, shape in shapes.items()}
        parameters = ["T: int"] if self.has_time else []
        for name, (kind, shape) in arrays.items():
            dims = ", ".join(f'"{size} + {2 * MARGIN}"' for size in shape)
            parameters.append(f"{name}: nestor.{kind}[{dims}]")
        if self.has_index:
            parameters.append(f'I: nestor.i64["N + {2 * MARGIN}"]')
        head = (
            "import numpy as np\n\nimport nestor\n\n\n"
            f"@nestor.kernel(contract=False, reassociate={reassociate})\n"
            f"def made({', '.join(parameters)}):\n"
        )
        text = head + "\n".join(self.lines) + "\n"
        return Made(text, arrays, self.has_time, self.has_index, tuple(self.nests))

    def put(self, depth: int, line: str) -> None:
        """One line of the function."""
        self.lines.append("    " * depth + line)

    # Loops

    def nest(self, depth: int) -> None:
        """One nest: loops, with statements on the way in and out."""
        kinds = [self.contraction, self.product, self.stencil, self.free, self.sweep, self.odd]
        make = self.random.choices(kinds, (5, 3, 4, 4, 2, 2))[0]
        make(depth)

    def open(self, depth: int, size: str | None = None, *, plain: bool = False) -> int:
        """A loop's header; what is inside is one deeper."""
        name = LOOPS[len(self.loops)]
        size = size or self.random.choice(SIZES)
        self.sizes.add(size)
        low, high = str(MARGIN), f"{size} + {MARGIN}"
        same = [loop.name for loop in self.loops if loop.size == size]
        pick = self.random.random()
        if plain or pick < 0.6:
            header = f"range({low}, {high})"
        elif pick < 0.78 and same:
            outer = self.random.choice(same)
            header = self.random.choice(
                [f"range({low}, {outer})", f"range({low}, {outer} + 1)", f"range({outer}, {high})",
                 f"range({outer} + 1, {high})", f"range({outer} - 1, min({outer} + 3, {high}))",
                 f"range({high} - 1, {outer}, -1)"]
            )  # fmt: skip
        elif pick < 0.84:
            header = f"range({low}, {high}, {self.random.choice('23')})"
        elif pick < 0.9:
            header = f"range({high} - 1, {low} - 1, -1)"
        elif pick < 0.95:
            header = f"range({low} + 1, {high} - 1)"
        else:
            header = f"range({low}, min({low} + {self.random.choice('1359')}, {high}))"
        self.put(depth, f"for {name} in {header}:")
        self.loops.append(Loop(name, size))
        self.nests.append(tuple(loop.size for loop in self.loops))
        return depth + 1

    def close(self, count: int = 1) -> None:
        """Leave loops."""
        del self.loops[len(self.loops) - count :]

    # Kinds of nests

    def product(self, depth: int) -> None:
        """A sum, product, minimum or maximum over the innermost or a middle loop."""
        target = self.random.choice(["C", "C", "D", "x", "y", "C"])
        outside = [*SHAPES[target]]
        reduced = self.random.choice(SIZES)
        order = [*outside, reduced]
        if self.random.random() < 0.5:
            self.random.shuffle(order)
        else:
            self.random.shuffle(outside)
            order = [*outside, reduced]
        is_last = order[:-1] == outside and order[-1] == reduced
        for k, size in enumerate(order):
            if k and k == len(order) - 1 and is_last and self.random.random() < 0.5:
                self.assign(depth)
            depth = self.open(depth, size, plain=self.random.random() < 0.7)
        extra = self.random.random()
        self.accumulate(depth, target)
        if extra < 0.2:
            self.accumulate(depth, target)
        inner = self.loops.pop()
        if extra > 0.6 and self.loops:
            self.assign(depth - 1)
        self.loops.append(inner)
        self.close(len(order))

    def contraction(self, depth: int) -> None:
        """A product of matrices or vectors, of triangles, or in place as in factorizations."""
        sizes, target, *factors = self.random.choice(CONTRACTIONS)
        order = list(range(len(sizes)))
        if self.random.random() < 0.6:
            self.random.shuffle(order)
        first = len(self.loops)
        plain = self.random.random() < 0.5
        for k in order:
            if self.loops[first:] and self.random.random() < 0.15:
                self.statement(depth)
            depth = self.open(depth, sizes[k], plain=plain)
        names = {str(k): self.loops[first + p].name for p, k in enumerate(order)}
        ordered = [names[str(k)] for k in range(len(sizes))]
        self.used.update(text[0] for text in (target, *factors))
        x, a, b = (text.format(*ordered) for text in (target, *factors))
        pick = self.random.random()
        if pick < 0.8:
            self.put(depth, f"{x} {self.random.choice('++-')}= {self.scaled(f'{a} * {b}')}")
        else:
            self.put(
                depth, f"{x} = {self.random.choice(['np.minimum', 'np.maximum'])}({x}, {a} + {b})"
            )
        self.close()
        for p in range(1, len(order)):
            if self.random.random() < 0.2:
                self.statement(depth - p)
            self.close()

    def stencil(self, depth: int) -> None:
        """Neighbours, in place or from another array, perhaps back again."""
        first, second = self.random.choice(
            [("D", "E"), ("D", "D"), ("C", "C"), ("x", "w"), ("x", "x"), ("G", "G"), ("E", "D")]
        )
        pairs = [(first, second)]
        if self.random.random() < 0.5:
            pairs.append((second, first))
        for target, source in pairs:
            opened = 0
            here = depth
            for size in SHAPES[target]:
                here = self.open(here, size, plain=self.random.random() < 0.9)
                opened += 1
            names = [loop.name for loop in self.loops[len(self.loops) - opened :]]
            terms = [self.at(source, [self.near(n) for n in names]) for _ in range(self.pick(1, 4))]
            self.put(here, f"{self.at(target, names)} = {self.scaled(' + '.join(terms))}")
            self.close(opened)

    def sweep(self, depth: int) -> None:
        """A recurrence along one dimension of a matrix or a vector."""
        target = self.random.choice(["C", "D", "x", "C"])
        opened = 0
        sizes = [*SHAPES[target]]
        swap = len(sizes) == 2 and self.random.random() < 0.4
        for size in reversed(sizes) if swap else sizes:
            depth = self.open(depth, size, plain=self.random.random() < 0.6)
            opened += 1
        names = [loop.name for loop in self.loops[len(self.loops) - opened :]]
        names = names[::-1] if swap else names
        along = self.random.randrange(len(names))
        shift = self.random.choice(["- 1", "- 2", "+ 1", "- 1"])
        before = [f"{n} {shift}" if p == along else n for p, n in enumerate(names)]
        value = f"{self.scaled(self.at(target, before))} + {self.value(1)}"
        self.put(depth, f"{self.at(target, names)} = {value}")
        if self.random.random() < 0.3:
            self.assign(depth)
        self.close(opened)

    def odd(self, depth: int) -> None:
        """Convolutions, every other element, and two copies in turn."""
        if self.has_time and self.random.random() < 0.5:
            inner = self.open(depth, "N", plain=True)
            i = self.loops[-1].name
            now, then = self.random.choice([("t", "t + 1"), ("t % 2", "(t + 1) % 2")])
            name = "R" if "%" in now else "H"
            value = " + ".join(self.at(name, [now, self.near(i)]) for _ in range(self.pick(1, 3)))
            self.put(inner, f"{self.at(name, [then, i])} = {self.scaled(value)}")
            self.close()
            return
        order = self.random.sample("NM", 2)
        inner = depth
        for size in order:
            inner = self.open(inner, size, plain=self.random.random() < 0.8)
        i, j = (loop.name for loop in sorted(self.loops[-2:], key=lambda x: x.size != "N"))
        window = self.random.choice(
            [self.at("P", [f"{i} + {j} - 4"]), self.at("P", [f"{i} - {j} + M + 4"])]
        )
        pick = self.random.random()
        if pick < 0.6:
            self.put(
                inner, f"{self.at('x', [i])} += {self.scaled(window + '*' + self.at('y', [j]))}"
            )
        elif pick < 0.8:
            self.put(inner, f"{window} += {self.scaled(self.element() + '*' + self.at('x', [i]))}")
        else:
            self.put(inner, f"{window} = {self.value(1)}")
        self.close(2)

    def special(self) -> str | None:
        """An element of an odd array; None if the loops around have none."""
        inner = [loop.name for loop in self.loops if loop.size == "N"]
        other = [loop.name for loop in self.loops if loop.size == "M"]
        if not inner:
            return None
        i = self.random.choice(inner)
        found = [("Q", [f"2*{i} - {self.pick(2, 5)}"]), ("Q", [f"{i} + {inner[0]} - 4"])]
        if other:
            found.append(("P", [f"{i} + {self.random.choice(other)} - {self.pick(2, 5)}"]))
        if self.has_time:
            found.append(("R", [self.random.choice(["t % 2", "(t + 1) % 2"]), self.near(i)]))
            found.append(("H", [self.random.choice(["t", "t + 1"]), self.near(i)]))
        return self.at(*self.random.choice(found))

    def free(self, depth: int) -> None:
        """Loops with statements before, after and inside."""
        count = self.pick(1, 3)
        opened = 0
        for k in range(count):
            if k and self.random.random() < 0.35:
                self.assign(depth)
            depth = self.open(depth)
            opened += 1
        for _ in range(self.pick(1, 3)):
            self.statement(depth)
        for _ in range(opened):
            self.close()
            depth -= 1
            if self.loops and self.random.random() < 0.3:
                self.statement(depth)

    # Statements

    def statement(self, depth: int) -> None:
        """Any statement inside loops."""
        pick = self.random.random()
        if pick < 0.2 and self.may_branch and depth < 6:
            condition = self.condition()
            self.put(depth, f"if {condition}:")
            self.assign(depth + 1)
            if self.random.random() < 0.4:
                self.put(depth, "else:")
                self.assign(depth + 1)
        elif pick < 0.35 and len(self.loops) < 4:
            self.scalar_sum(depth)
        elif pick < 0.55:
            self.accumulate(depth, self.random.choice([n for n in self.names if n != "G"]))
        else:
            self.assign(depth)

    def condition(self) -> str:
        """On indices, or on data."""
        first = self.random.choice(self.loops).name
        second = self.random.choice(self.loops)
        choices = [f"{first} < {second.name}", f"{first} != {second.name}", f"{first} % 2 == 0",
                   f"{first} >= {second.size}", f"{self.value(0)} < {self.value(0)}"]  # fmt: skip
        return self.random.choice(choices)

    def scalar_sum(self, depth: int) -> None:
        """A scalar that a loop sums up, then an element."""
        # One name each: a scalar has one type, for Python it has that of what it holds.
        self.scalars += 1
        name = f"s{self.scalars}"
        self.put(depth, f"{name} = {self.element()}")
        inner = self.open(depth, plain=self.random.random() < 0.7)
        op = self.random.choice(["+", "+", "-"])
        self.put(inner, f"{name} {op}= {self.value(1)}")
        self.close()
        self.put(depth, f"{self.target()} = {self.scaled(name)}")

    def accumulate(self, depth: int, target: str) -> None:
        """``x = x ∘ e``."""
        x = self.at(target, [self.along(size) for size in SHAPES[target]])
        pick = self.random.random()
        if pick < 0.75:
            self.put(depth, f"{x} {self.random.choice('+++-')}= {self.value(2, product=True)}")
        elif pick < 0.9 or self.dtype == "i32":
            function = self.random.choice(["np.minimum", "np.maximum"])
            self.put(depth, f"{x} = {function}({x}, {self.value(1)})")
        else:
            self.put(depth, f"{x} *= {self.scaled(self.value(0))}")

    def assign(self, depth: int) -> None:
        """An element = an expression."""
        value = self.value(2) if self.random.random() < 0.7 else self.constant()
        self.put(depth, f"{self.target()} = {value}")

    def target(self) -> str:
        """An element to write: likely one that all loops around move."""
        sizes = {loop.size for loop in self.loops}
        names = [n for n in self.names if set(SHAPES[n]) <= sizes or self.random.random() < 0.05]
        name = self.random.choice(names or ["x", "y", "C"])
        special = self.special() if self.random.random() < 0.08 else None
        if special:
            return special
        indices = [self.along(size) for size in SHAPES[name]]
        return self.at(name, self.selected(name, indices))

    def selected(self, name: str, indices: list[str]) -> list[str]:
        """Now and then the first index is data."""
        if self.random.random() < 0.04 and SHAPES[name][0] == "N" and self.loops:
            self.has_index = True
            return [f"I[{self.along('N')}]", *indices[1:]]
        return indices

    # Expressions

    def pick(self, low: int, high: int) -> int:
        """A small number."""
        return self.random.randint(low, high)

    def at(self, name: str, indices: list[str]) -> str:
        """An element."""
        self.used.add(name)
        return f"{name}[{', '.join(indices)}]"

    def near(self, name: str) -> str:
        """An index at most 2 away."""
        step = self.random.choice([0, 0, -1, 1, -1, 1, -2, 2])
        return name if not step else f"{name} {'+' if step > 0 else '-'} {abs(step)}"

    def along(self, size: str) -> str:
        """An index into a dimension of ``size``: a loop over it, moved now and then."""
        mine = [loop.name for loop in self.loops if loop.size == size]
        pick = self.random.random()
        if not mine:
            return self.random.choice(["0", str(MARGIN), f"{size} + {MARGIN}", "1"])
        name = self.random.choice(mine)
        if pick < 0.8:
            return name
        if pick < 0.93:
            return self.near(name)
        if pick < 0.96:
            return f"{size} + {2 * MARGIN - 1} - {name}"
        if pick < 0.98:
            return f"{name} // 2 + 1"
        return str(MARGIN)

    def element(self) -> str:
        """An element to read: likely of an array over the loops around."""
        sizes = {loop.size for loop in self.loops}
        fitting = [n for n in self.names if set(SHAPES[n]) <= sizes]
        name = self.random.choice(fitting * 3 + [n for n in self.names if n != "G"])
        indices = [self.along(size) for size in SHAPES[name]]
        special = self.special() if self.random.random() < 0.06 else None
        return special or self.at(name, self.selected(name, indices))

    def constant(self) -> str:
        """A number of the kernel's type."""
        return self.random.choice(["0", "1", "3"] if self.dtype == "i32" else ["0.0", "1.0", "0.5"])

    def scaled(self, value: str) -> str:
        """A value that does not grow."""
        return f"({value})" if self.dtype == "i32" else f"0.25 * ({value})"

    def value(self, depth: int, *, product: bool = False) -> str:
        """An expression."""
        if depth == 0:
            pick = self.random.random()
            if pick < 0.08 and self.loops:
                name = self.random.choice(self.loops).name
                return name if self.dtype == "i32" else f"{name} * 0.125"
            return self.element() if pick < 0.88 else self.constant()
        pick = self.random.random()
        if product and pick < 0.8:
            return self.scaled(f"{self.element()} * {self.element()}")
        if pick < 0.3:
            return self.element()
        if pick < 0.75:
            op = self.random.choice("++-*")
            return f"({self.value(depth - 1)} {op} {self.value(depth - 1)})"
        if pick < 0.86:
            return self.scaled(self.value(depth - 1))
        if pick < 0.9:
            return f"abs({self.value(depth - 1)})"
        if pick < 0.94 and self.dtype != "i32":
            root = f"np.sqrt(abs({self.value(depth - 1)}))"
            return root if pick < 0.92 else f"({self.value(depth - 1)} / (2.0 + {root}))"
        name = self.random.choice(["np.maximum", "np.minimum"])
        return f"{name}({self.value(depth - 1)}, {self.value(depth - 1)})"


def make_nests(seed: int, *, reassociate: bool) -> Made:
    """The module of a seed."""
    return NestWriter(seed).made(reassociate=reassociate)
