"""Running an artifact where only Python, NumPy and Nestor are installed, and no compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

import nestor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def slim_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment's interpreter: NumPy and Nestor linked in, nothing else, not even pip."""
    folder = tmp_path_factory.mktemp("slim") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    numpy = Path(np.__file__).parent
    for found in (numpy, numpy.with_name("numpy.libs")):
        if found.exists():
            (site / found.name).symlink_to(found)
    (site / "nestor").symlink_to(ROOT / "nestor")
    return folder / "bin" / "python"


def run(python: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command there; nothing of this process's environment but a home."""
    environ = {"PATH": "/nonexistent", "HOME": os.environ.get("HOME", "/"), **extra}
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, env=environ, cwd="/",
        timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """An artifact with a dynamic batch, an input, and what PyTorch says."""
    folder = tmp_path_factory.mktemp("artifact")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(19, 40), torch.nn.GELU(), torch.nn.Linear(40, 7), torch.nn.Softmax(-1)
    ).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    compiled = nestor.compile(
        model, (torch.randn(2, 19),), dynamic_shapes=({0: batch},), strict=True
    )
    compiled.save(folder / "net.nst")
    x = torch.randn(5, 19)
    np.save(folder / "x.npy", x.numpy())
    with torch.inference_mode():
        return folder / "net.nst", folder / "x.npy", model(x).numpy()


def test_the_environment_has_nothing_else(slim_python: Path) -> None:
    for package in ("torch", "islpy", "llvmlite", "rich"):
        assert "ModuleNotFoundError" in run(slim_python, "-c", f"import {package}").stderr


def test_run(slim_python: Path, artifact: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    file, x, expected = artifact
    out = tmp_path / "y.npy"
    done = run(
        slim_python, "-m", "nestor", "run", str(file), "--input", str(x), "--output", str(out)
    )
    assert done.returncode == 0, done.stderr
    assert "5×7" in done.stdout
    np.testing.assert_allclose(np.load(out), expected, rtol=1e-5, atol=1e-6)


def test_run_with_random_inputs_as_json(
    slim_python: Path, artifact: tuple[Path, Path, np.ndarray]
) -> None:
    done = run(slim_python, "-m", "nestor", "run", str(artifact[0]), "--random", "3", "--json")
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(done.stdout)["outputs"]
    assert output["shape"] == [1, 7]
    assert output["mean"] == pytest.approx(1 / 7)


def test_run_without_inputs_names_them(
    slim_python: Path, artifact: tuple[Path, Path, np.ndarray]
) -> None:
    done = run(slim_python, "-m", "nestor", "run", str(artifact[0]))
    assert done.returncode == 2
    assert "needs inputs:" in done.stderr
    assert "f32(" in done.stderr


def test_bench_an_artifact(slim_python: Path, artifact: tuple[Path, Path, np.ndarray]) -> None:
    done = run(slim_python, "-m", "nestor", "bench", str(artifact[0]), "--rounds", "2", "--json")
    assert done.returncode == 0, done.stderr
    (peer,) = json.loads(done.stdout)["peers"]
    assert peer["name"] == "artifact"
    assert peer["call_seconds"]["median"] > 0


def test_doctor(slim_python: Path, tmp_path: Path) -> None:
    done = run(slim_python, "-m", "nestor", "doctor", "--json", NESTOR_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    checks = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert checks["torch"]["state"] == "note"
    assert checks["numpy"]["state"] == "ok"
    assert "artifacts can run here" in checks["self-test"]["detail"]


def test_a_model_is_refused_with_advice(slim_python: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\n")
    done = run(slim_python, "-m", "nestor", "run", f"{tmp_path}/net.py:make")
    assert done.returncode == 2
    assert "needs PyTorch, which is not installed here" in done.stderr
    assert "Traceback" not in done.stderr
