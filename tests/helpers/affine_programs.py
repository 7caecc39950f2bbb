"""Affine kernels as Programs with full orders, and a short notation that writes them.

``for i in 0..N { for j in 0..M { C[i,j] = C[i,j] + A[i,k]*B[k,j] } }`` becomes IR text, which the
IR's own parser reads. Tensors are f64.
"""

from __future__ import annotations

import re

from nestor.ir.parser import parse_program
from nestor.ir.program import Program

_TOKEN = re.compile(r"\s*(for\b|\}|[^;{}]+[;{]|[^;{}]+(?=\}))")


def affine_program(
    name: str, symbols: str, tensors: dict[str, str], body: str, inputs: str = ""
) -> Program:
    """Program of a body in the notation above.

    Args:
        symbols: names, space-separated, each at least 1.
        tensors: name → shape, e.g. ``{"C": "N, M"}``; ``inputs`` names those only read.
        body: loops ``for i in 0..N { … }`` and assignments, each ended by ``;``.
    """
    read_only = inputs.split()
    lines = [f"program {name}({', '.join(f'{s}: 1..' for s in symbols.split())}) {{"]
    for tensor, shape in tensors.items():
        lines.append(f"  {'input' if tensor in read_only else 'inout'} {tensor}: f64[{shape}]")
    ranges: list[str] = []
    count = 0
    at = 0
    while at < len(body):
        rest = body[at:]
        at += len(rest) - len(rest.lstrip())
        rest = body[at:]
        if not rest:
            break
        if rest.startswith("}"):
            lines.append("}")
            ranges.pop()
            at += 1
        elif loop := re.match(r"for (\w+) in (.+?)\.\.([^{]+)\{", rest):
            index, lower, upper = (g.strip() for g in loop.groups())
            lines.append(f"seq {index} {{")
            ranges.append(f"{lower} <= {index} < {upper}")
            at += loop.end()
        else:
            text, _, _ = rest.partition(";")
            lines.append(f"statement S{count} over {{ {', '.join(ranges)} }}")
            lines.append("  " + re.sub(r"(?<![\w.\]])(\d+\.\d+)(?!:)", r"\1:f64", text.strip()))
            count += 1
            at += len(text) + 1
    return parse_program("\n".join([*lines, "}"]))


def gemm() -> Program:
    return affine_program(
        "gemm", "NI NJ NK", {"C": "NI, NJ", "A": "NI, NK", "B": "NK, NJ"},
        """for i in 0..NI {
             for j in 0..NJ { C[i, j] = C[i, j] * 0.5; }
             for k in 0..NK { for j in 0..NJ { C[i, j] = C[i, j] + A[i, k] * B[k, j]; } }
           }""", inputs="A B",
    )  # fmt: skip


def syrk() -> Program:
    return affine_program(
        "syrk", "N M", {"C": "N, N", "A": "N, M"},
        """for i in 0..N {
             for j in 0..i + 1 { C[i, j] = C[i, j] * 0.5; }
             for k in 0..M { for j in 0..i + 1 { C[i, j] = C[i, j] + A[i, k] * A[j, k]; } }
           }""", inputs="A",
    )  # fmt: skip


def mvt() -> Program:
    return affine_program(
        "mvt", "N", {"A": "N, N", "x1": "N", "x2": "N", "y1": "N", "y2": "N"},
        """for i in 0..N { for j in 0..N { x1[i] = x1[i] + A[i, j] * y1[j]; } }
           for i in 0..N { for j in 0..N { x2[i] = x2[i] + A[j, i] * y2[j]; } }""",
        inputs="A y1 y2",
    )  # fmt: skip


def atax() -> Program:
    return affine_program(
        "atax", "M N", {"A": "M, N", "x": "N", "y": "N", "tmp": "M"},
        """for i in 0..N { y[i] = 0.0; }
           for i in 0..M {
             tmp[i] = 0.0;
             for j in 0..N { tmp[i] = tmp[i] + A[i, j] * x[j]; }
             for j in 0..N { y[j] = y[j] + A[i, j] * tmp[i]; }
           }""", inputs="A x",
    )  # fmt: skip


def lu() -> Program:
    return affine_program(
        "lu", "N", {"A": "N, N"},
        """for i in 0..N {
             for j in 0..i {
               for k in 0..j { A[i, j] = A[i, j] - A[i, k] * A[k, j]; }
               A[i, j] = A[i, j] / A[j, j];
             }
             for j in i..N { for k in 0..i { A[i, j] = A[i, j] - A[i, k] * A[k, j]; } }
           }""",
    )  # fmt: skip


def cholesky() -> Program:
    return affine_program(
        "cholesky", "N", {"A": "N, N"},
        """for i in 0..N {
             for j in 0..i {
               for k in 0..j { A[i, j] = A[i, j] - A[i, k] * A[j, k]; }
               A[i, j] = A[i, j] / A[j, j];
             }
             for k in 0..i { A[i, i] = A[i, i] - A[i, k] * A[i, k]; }
             A[i, i] = sqrt(A[i, i]);
           }""",
    )  # fmt: skip


def trisolv() -> Program:
    return affine_program(
        "trisolv", "N", {"L": "N, N", "x": "N", "b": "N"},
        """for i in 0..N {
             x[i] = b[i];
             for j in 0..i { x[i] = x[i] - L[i, j] * x[j]; }
             x[i] = x[i] / L[i, i];
           }""", inputs="L b",
    )  # fmt: skip


def jacobi_1d() -> Program:
    return affine_program(
        "jacobi_1d", "T N", {"A": "N", "B": "N"},
        """for t in 0..T {
             for i in 1..N - 1 { B[i] = (A[i - 1] + A[i] + A[i + 1]) * 0.33333; }
             for i in 1..N - 1 { A[i] = (B[i - 1] + B[i] + B[i + 1]) * 0.33333; }
           }""",
    )  # fmt: skip


def jacobi_2d() -> Program:
    def five(a: str) -> str:
        return (f"({a}[i, j] + {a}[i, j - 1] + {a}[i, j + 1] + {a}[i + 1, j]"
                f" + {a}[i - 1, j]) * 0.2")  # fmt: skip

    return affine_program(
        "jacobi_2d", "T N", {"A": "N, N", "B": "N, N"},
        f"""for t in 0..T {{
             for i in 1..N - 1 {{ for j in 1..N - 1 {{ B[i, j] = {five("A")}; }} }}
             for i in 1..N - 1 {{ for j in 1..N - 1 {{ A[i, j] = {five("B")}; }} }}
           }}""",
    )  # fmt: skip


def seidel_2d() -> Program:
    return affine_program(
        "seidel_2d", "T N", {"A": "N, N"},
        """for t in 0..T { for i in 1..N - 1 { for j in 1..N - 1 {
             A[i, j] = (A[i - 1, j - 1] + A[i - 1, j] + A[i - 1, j + 1] + A[i, j - 1] + A[i, j]
               + A[i, j + 1] + A[i + 1, j - 1] + A[i + 1, j] + A[i + 1, j + 1]) / 9.0;
           } } }""",
    )  # fmt: skip


def heat_3d() -> Program:
    def seven(a: str) -> str:
        return (f"0.125 * ({a}[i + 1, j, k] - 2.0 * {a}[i, j, k] + {a}[i - 1, j, k])"
                f" + 0.125 * ({a}[i, j + 1, k] - 2.0 * {a}[i, j, k] + {a}[i, j - 1, k])"
                f" + 0.125 * ({a}[i, j, k + 1] - 2.0 * {a}[i, j, k] + {a}[i, j, k - 1])"
                f" + {a}[i, j, k]")  # fmt: skip

    loops = "for i in 1..N - 1 { for j in 1..N - 1 { for k in 1..N - 1 {"
    return affine_program(
        "heat_3d", "T N", {"A": "N, N, N", "B": "N, N, N"},
        f"""for t in 0..T {{
             {loops} B[i, j, k] = {seven("A")}; }} }} }}
             {loops} A[i, j, k] = {seven("B")}; }} }} }}
           }}""",
    )  # fmt: skip


def fdtd_2d() -> Program:
    return affine_program(
        "fdtd_2d", "T NX NY",
        {"ex": "NX, NY", "ey": "NX, NY", "hz": "NX, NY", "fict": "T"},
        """for t in 0..T {
             for j in 0..NY { ey[0, j] = fict[t]; }
             for i in 1..NX { for j in 0..NY { ey[i, j] = ey[i, j] - 0.5*(hz[i, j] - hz[i - 1, j]);
             } }
             for i in 0..NX { for j in 1..NY { ex[i, j] = ex[i, j] - 0.5*(hz[i, j] - hz[i, j - 1]);
             } }
             for i in 0..NX - 1 { for j in 0..NY - 1 {
               hz[i, j] = hz[i, j] - 0.7*(ex[i, j + 1] - ex[i, j] + ey[i + 1, j] - ey[i, j]); } }
           }""", inputs="fict",
    )  # fmt: skip


def floyd_warshall() -> Program:
    return affine_program(
        "floyd_warshall", "N", {"path": "N, N"},
        """for k in 0..N { for i in 0..N { for j in 0..N {
             path[i, j] = min(path[i, j], path[i, k] + path[k, j]);
           } } }""",
    )  # fmt: skip


KERNELS = {
    f.__name__: f
    for f in (
        gemm, syrk, mvt, atax, lu, cholesky, trisolv, jacobi_1d, jacobi_2d, seidel_2d, heat_3d,
        fdtd_2d, floyd_warshall,
    )
}  # fmt: skip
