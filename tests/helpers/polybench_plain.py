"""The kernels of PolyBench run by Python itself, element by element: slow, and beyond doubt."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.polybench import registry

KERNELS = Path(registry.__file__).parent / "kernels"


def definition(name: str) -> ast.FunctionDef:
    """The source of benchmark ``name``'s kernel, parsed."""
    tree = ast.parse((KERNELS / f"{registry.group_of(name)}.py").read_text(encoding="utf-8"))
    wanted = registry.CASES[name].function
    return next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == wanted)


def plain_function(name: str, sizes: dict[str, int]) -> Callable[..., Any]:
    """The kernel as a Python function, its sizes bound to ``sizes``."""
    function = definition(name)
    function.decorator_list = []
    for argument in function.args.args:
        argument.annotation = None
    scope: dict[str, Any] = {"math": math, **sizes}
    code = ast.fix_missing_locations(ast.Module(body=[function], type_ignores=[]))
    exec(compile(code, f"<{name}>", "exec"), scope)
    return scope[function.name]


def run_plain(name: str, inputs: dict[str, Any], sizes: dict[str, int]) -> None:
    """Run the kernel on ``inputs``, whose arrays it overwrites."""
    plain_function(name, sizes)(**inputs)
