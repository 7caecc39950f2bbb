"""Results that are written over operands nobody reads any more."""

from __future__ import annotations

import pytest

from nestor.ir.parser import parse_program
from nestor.ir.program import Extern, Kernel, Program
from nestor.passes.fusion import FusedKernel
from nestor.passes.overwrite import overwrite_operands

TENSORS = """
  input x: f32[4, 6]
  temp a: f32[4, 6]
  temp b: f32[4, 6]
  temp c: f32[1, 4, 6]
  output y: f32[4, 6]
"""


def made(statements: list[str], tensors: str = TENSORS) -> tuple[Program, list[Kernel]]:
    """A Program of these statements and, a kernel a statement, what the rule makes of it."""
    body = "\n".join(f"  at {k}: statement S{k} over {s}" for k, s in enumerate(statements))
    program = parse_program(f"program p {{{tensors}\n{body}\n}}")
    parts: list[FusedKernel | Extern] = []
    for s in program.statements:
        text = repr(s)
        used = [t for t in program.tensors if f"tensor='{t.name}'" in text]
        written = {w.tensor for w in s.writes}  # type: ignore[union-attr]
        kernel = Program(
            name=s.name,
            symbols=(),
            tensors=tuple(
                type(t)(
                    name=t.name,
                    dtype=t.dtype,
                    shape=t.shape,
                    layout=t.layout,
                    role="output" if t.name in written else "input",
                )
                for t in used
            ),
            statements=(s,),
        )
        parts.append(FusedKernel(kernel=kernel, shared={s.name: ()}))
    done = overwrite_operands(program, parts)
    return program, [p.kernel for p in done if isinstance(p, FusedKernel)]


def roles(kernel: Kernel) -> dict[str, str]:
    return {t.name: t.role for t in kernel.tensors}


GRID = "{ 0 <= i < 4, 0 <= j < 6 }\n"


def test_a_dead_operand_is_written_over_and_the_result_takes_its_name() -> None:
    _, kernels = made(
        [
            GRID + "    a[i, j] = x[i, j] + x[i, j]",
            GRID + "    b[i, j] = a[i, j] * x[i, j]",
            GRID + "    y[i, j] = b[i, j] + b[i, j]",
        ]
    )
    assert roles(kernels[1]) == {"x": "input", "a": "inout"}
    assert roles(kernels[2]) == {"a": "input", "y": "output"}


def test_dimensions_of_one_element_do_not_matter() -> None:
    _, kernels = made(
        [
            GRID + "    c[0, i, j] = x[i, j] + x[i, j]",
            GRID + "    b[i, j] = c[0, i, j] * x[i, j]",
            GRID + "    y[i, j] = b[i, 5 - j] + b[i, j]",
        ]
    )
    assert roles(kernels[1]) == {"x": "input", "c": "inout"}
    assert [len(t.shape) for t in kernels[2].tensors if t.name == "c"] == [3]
    assert "b" not in roles(kernels[2])


@pytest.mark.parametrize(
    ("second", "third"),
    [
        ("b[i, j] = a[i, 5 - j] * x[i, j]", "y[i, j] = b[i, j] + x[i, j]"),  # another element
        ("b[i, j] = a[i, j] * a[0, j]", "y[i, j] = b[i, j] + x[i, j]"),  # others as well
        ("b[i, j] = a[i, j] * x[i, j]", "y[i, j] = b[i, j] + a[i, j]"),  # read later
        ("b[i, j] = x[i, j] * x[i, j]", "y[i, j] = b[i, j] + a[i, j]"),  # an output stays
    ],
)
def test_what_must_stay_apart(second: str, third: str) -> None:
    first = "a[i, j] = x[i, j] + x[i, j]"
    _, kernels = made([f"{GRID}    {s}" for s in (first, second, third)])
    assert all("inout" not in roles(k).values() for k in kernels)


def test_a_result_that_another_kernel_began_stays() -> None:
    _, kernels = made(
        [
            GRID + "    a[i, j] = x[i, j] + x[i, j]",
            "{ 0 <= i < 1, 0 <= j < 6 }\n    b[i, j] = x[i, j] * x[i, j]",
            "{ 1 <= i < 4, 0 <= j < 6 }\n    b[i, j] = a[i, j] * x[i, j]",
            GRID + "    y[i, j] = b[i, j] + b[i, j]",
        ]
    )
    assert all("inout" not in roles(k).values() for k in kernels)


def test_residual_sums_of_a_model_need_one_array() -> None:
    torch = pytest.importorskip("torch")
    import nestor

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(96, 96) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(x)
            for layer in self.layers:
                x = torch.relu(layer(x) + x)
            return x.sum(dim=0)

    torch.manual_seed(0)
    model = Residual().eval()
    x = torch.randn(256, 96)
    fast = nestor.compile(model, (x,), strict=True)
    with torch.inference_mode():
        exact = model.double()(x.double())
    model.float()
    torch.testing.assert_close(fast(x).double(), exact, rtol=2e-5, atol=2e-4)
    again = fast(x)
    assert torch.equal(again, fast(x))
