"""``nestor doctor``: is this machine fit to compile and to run?

Where only Python and NumPy are installed it says so, and checks what running an artifact needs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nestor.config import Config
from nestor.runtime.threads import SerialWarning, available_cpus, mapped_libgomps, openmp
from nestor.tables import Table, format_bytes, format_seconds, print_tables

State = Literal["ok", "note", "failed"]

COMPILING = ("torch", "islpy", "llvmlite")
"""What compiling needs beside NumPy; running an artifact does not."""

_LEAST = {"numpy": (1, 26), "torch": (2, 11)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: what was looked at.
        state: ``ok``; ``note``: works, but know this; ``failed``: will not work.
        detail: what was found.
        fix: what to do about it; empty if nothing.
    """

    name: str
    state: State
    detail: str
    fix: str = ""


def doctor_command(given: argparse.Namespace, config: Config) -> int:
    """Print every check; 1 if one failed."""
    checks = list(examine(config))
    healthy = all(c.state != "failed" for c in checks)
    if given.json:
        found = [{n: getattr(c, n) for n in Check.__slots__} for c in checks]
        print(json.dumps({"healthy": healthy, "checks": found}))
    else:
        rows = tuple((c.state, c.name, c.detail + (f"; {c.fix}" if c.fix else "")) for c in checks)
        print_tables(Table(columns=("", "check", "found"), rows=rows))
        print("\nhealthy" if healthy else "\nnot healthy: see what failed above")
    return 0 if healthy else 1


def examine(config: Config) -> Iterator[Check]:
    """All checks, in order; one that breaks is itself a failed check."""
    yield from _guard("python", _python)
    yield from _guard("platform", _platform)
    for package in ("numpy", *COMPILING, "rich"):
        yield from _guard(package, partial(_package, package))
    yield from _guard("cpu", _cpu)
    yield from _guard("threads", lambda: _threads(config))
    yield from _guard("cache", lambda: _cache(config.cache_dir))
    yield from _guard("self-test", _self_test)


def _guard(name: str, look: Callable[[], Check]) -> Iterator[Check]:
    try:
        yield look()
    except Exception as error:
        yield Check(name=name, state="failed", detail=f"{type(error).__name__}: {error}")


def _python() -> Check:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check(name="python", state="ok", detail=version)
    return Check(
        name="python", state="note", detail=version, fix="Nestor is tested with 3.11 to 3.13"
    )


def _platform() -> Check:
    detail = f"{platform.system()} {platform.machine()}"
    if detail == "Linux x86_64":
        return Check(name="platform", state="ok", detail=detail)
    fix = "generated code runs on Linux x86_64"
    return Check(name="platform", state="failed", detail=detail, fix=fix)


def _package(name: str) -> Check:
    """Whether a package is installed, imports, and is new enough."""
    if importlib.util.find_spec(name) is None:
        if name == "numpy":
            return Check(name=name, state="failed", detail="missing", fix="pip install numpy")
        use = "plain tables are printed instead" if name == "rich" else "artifacts run without it"
        return Check(name=name, state="note", detail=f"missing; {use}", fix=f"pip install {name}")
    start = time.perf_counter()
    module = importlib.import_module(name)
    seconds = time.perf_counter() - start
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # copied there, not installed
        version = str(getattr(module, "__version__", "0"))
    detail = f"{version} (imported in {format_seconds(seconds)})"
    least = _LEAST.get(name)
    if least and tuple(int(p) for p in version.split(".")[:2]) < least:
        wanted = ".".join(map(str, least))
        return Check(name=name, state="failed", detail=detail, fix=f"needs at least {wanted}")
    return Check(name=name, state="ok", detail=detail)


def _cpu() -> Check:
    from nestor.target.cpu import host_target

    host = host_target()
    detail = (
        f"{host.cpu}: vectors of {host.vector_bits} bits, {host.vector_registers} registers, "
        f"L2 {format_bytes(host.l2_bytes)}"
    )
    return Check(name="cpu", state="ok", detail=detail)


def _threads(config: Config) -> Check:
    """Cores, threads of a call, and the OpenMP library that runs them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SerialWarning)  # said below
        library = openmp().path
    detail = f"{available_cpus()} cores, {config.thread_count()} threads a call"
    if not library:
        fix = "install libgomp1 for parallel loops"
        return Check(name="threads", state="note", detail=f"{detail}, serial: no libgomp", fix=fix)
    loaded = mapped_libgomps()
    if len(loaded) > 1:
        fix = "two pools of threads disturb each other: do not load both in one process"
        names = ", ".join(loaded)
        return Check(name="threads", state="note", detail=f"{detail}; loaded: {names}", fix=fix)
    return Check(name="threads", state="ok", detail=f"{detail}, {Path(library).name}")


def _cache(folder: Path) -> Check:
    """Whether objects can be kept, and how many are."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            name="cache",
            state="note",
            detail=f"{folder} cannot be written: every compile starts anew",
            fix="set NESTOR_CACHE_DIR to a folder of yours",
        )
    if folder.exists() and folder.stat().st_mode & 0o022:
        return Check(
            name="cache",
            state="note",
            detail=f"{folder} can be written by others, so code from it is not trusted",
            fix=f"chmod go-w {folder}",
        )
    sizes = [f.stat().st_size for f in folder.rglob("*") if f.is_file()] if folder.exists() else []
    return Check(
        name="cache",
        state="ok",
        detail=f"{folder}: {len(sizes)} files, {format_bytes(sum(sizes))}",
    )


def _self_test() -> Check:
    """Compile a small model, save it, load the artifact, and compare each answer with PyTorch's."""
    missing = [p for p in COMPILING if importlib.util.find_spec(p) is None]
    if missing:
        detail = f"artifacts can run here; nothing can be compiled without {', '.join(missing)}"
        return Check(name="self-test", state="note", detail=detail)
    import torch

    import nestor

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(17, 33), torch.nn.Tanh()).eval()
        x = torch.randn(5, 17)
        expected = model(x)
    # A cache of its own, so that the test compiles and not only loads what it once compiled.
    with tempfile.TemporaryDirectory(prefix="nestor-doctor-") as folder:
        start = time.perf_counter()
        compiled: Any = nestor.compile(model, (x,), cache_dir=Path(folder) / "cache", workers=1)
        worst = float((compiled(x) - expected).abs().max())
        artifact = Path(folder) / "test.nst"
        compiled.save(artifact)
        loaded: Any = nestor.load(artifact)
        worst = max(worst, float(abs(loaded(x.numpy()) - expected.numpy()).max()))
        seconds = time.perf_counter() - start
    if not worst <= 1e-5:
        fix = "please report this with the output of `nestor doctor --json`"
        return Check(name="self-test", state="failed", detail=f"wrong by {worst:.3g}", fix=fix)
    took = format_seconds(seconds)
    detail = f"compiled, saved, loaded and run in {took}; largest difference {worst:.1g}"
    return Check(name="self-test", state="ok", detail=detail)
