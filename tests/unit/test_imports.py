"""Imports go one way, heavy packages stay where they belong, and `import nestor` is light.

The table of ``docs/architecture.md`` is read, not repeated, so that code and document agree.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nestor"
MODULES = sorted(PACKAGE.rglob("*.py"))

HEAVY = (
    "torch",
    "islpy",
    "llvmlite",
    "xgboost",
    "sqlalchemy",
    "rich",
    "ray",
    "transformers",
    "matplotlib",
    "triton",
)

EAGER_FOLDERS = (
    "passes/polyhedral/",
    "codegen/llvm/",
    "codegen/triton/",
    "frontends/torch/",
    "autotune/records/",
)
"""Loaded only by a compilation, so they may import their package at once; others must delay it."""

OWNERS = {
    "islpy": ("passes/polyhedral/",),
    "llvmlite": ("codegen/llvm/", "target/"),
    "torch": ("frontends/torch/", "runtime/", "benchmarking/", "autotune/", ""),
    "matplotlib": ("",),
    "rich": ("",),
    "ray": ("autotune/",),
    "sqlalchemy": ("autotune/records/",),
    "triton": ("codegen/triton/",),
    "xgboost": ("cost_model/",),
}
"""The folders that may import a package; ``""`` is the top of ``nestor`` itself."""


def _allowed() -> dict[str, set[str] | None]:
    """Area → areas that it may import; None for everything. From the architecture's table."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    allowed: dict[str, set[str] | None] = {}
    for row in re.findall(r"^\| (`.+?) \|.*\| (.+?) \|$", text, flags=re.MULTILINE):
        areas = re.findall(r"`([\w/.]+)`", row[0])
        targets: set[str] | None = {t.strip("/") for t in re.findall(r"`([\w/.]+)`", row[1])}
        if row[1].strip() == "everything":
            targets = None
        for area in areas:
            allowed[area.removesuffix(".py").strip("/")] = targets
    return allowed


ALLOWED = _allowed()


def _area(dotted: str) -> str | None:
    """The row of the table that a module of ours belongs to; None for the package itself."""
    path = dotted.removeprefix("nestor").lstrip(".").replace(".", "/")
    candidates = [a for a in ALLOWED if path == a or path.startswith(a + "/")]
    if candidates:
        return max(candidates, key=len)
    return path.split("/")[0] or None


def _dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file: Path) -> Iterator[tuple[str, int, bool]]:
    """Imported module, line, and whether it is imported when the file is.

    An import within a function is not; one under ``if TYPE_CHECKING`` is not seen at all.
    """

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}:{child.lineno}: imports are absolute"
                module = child.module or ""
                yield module, child.lineno, at_import
                for alias in child.names:
                    inner = PACKAGE.parent / Path(*module.split("."), alias.name)
                    if inner.with_suffix(".py").exists() or (inner / "__init__.py").exists():
                        yield f"{module}.{alias.name}", child.lineno, at_import
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from visit(child, at_import and not function)

    yield from visit(ast.parse(file.read_text(encoding="utf-8")), True)


def test_the_table_is_understood() -> None:
    assert ALLOWED["ir"] == {"errors"}
    assert ALLOWED["passes"] == {"ir", "target"}
    assert ALLOWED["api"] is None
    assert _area("nestor.ir.expr") == "ir"
    assert _area("nestor.passes.polyhedral.model") == "passes"


@pytest.mark.parametrize("file", MODULES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_imports_follow_the_table(file: Path) -> None:
    own = _area(_dotted(file))
    targets = ALLOWED.get(own) if own else None
    if own is None or (own in ALLOWED and targets is None) or file.parent == PACKAGE:
        # The package's own files drive the parts and may import all of them, but for errors.
        if own != "errors":
            return
    if own not in ALLOWED and not file.read_text(encoding="utf-8").strip():
        return  # an empty __init__ above a row, as of codegen/ above codegen/llvm/
    assert targets is not None, f"{own!r} has no row in docs/architecture.md"
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for module, line, _ in _imports(file)
        if module.split(".")[0] == "nestor"
        and (area := _area(module)) is not None
        and area not in targets | {own, "errors"}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_heavy_packages_stay_where_they_belong(package: str) -> None:
    wrong = []
    for file in MODULES:
        folder = file.relative_to(PACKAGE).parent.as_posix() + "/"
        home = any(folder.startswith(o) if o else folder == "./" for o in OWNERS[package])
        for module, line, at_import in _imports(file):
            if module.split(".")[0] != package:
                continue
            if not home or (at_import and not folder.startswith(EAGER_FOLDERS)):
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_runtime_needs_only_numpy() -> None:
    known = sys.stdlib_module_names | {"numpy", "nestor"}
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in (PACKAGE / "runtime").rglob("*.py")
        for module, line, at_import in _imports(file)
        if at_import and module.split(".")[0] not in known
    ]
    assert not wrong, "\n".join(wrong)


def _python(code: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    loaded = _python(
        "import sys, nestor\nprint(*sorted({m.split('.')[0] for m in sys.modules}))"
    ).split()
    assert not set(loaded) & set(HEAVY)


SLIM = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {"numpy", "nestor"}:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
sys.meta_path.insert(0, Refuse())
"""


def test_what_runs_artifacts_imports_with_numpy_alone() -> None:
    files = [f for f in MODULES if f.relative_to(PACKAGE).parts[0] == "runtime"]
    names = [_dotted(f) for f in files] + ["nestor", "nestor.cli", "nestor.config", "nestor.report"]
    imports = "\n".join(f"import {name}" for name in names)
    assert "fine" in _python(SLIM + imports + "\nprint('fine')")
