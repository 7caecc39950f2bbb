"""Artifacts for GPUs, made on a machine without one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nestor
from nestor.errors import ArtifactError, Unsupported, UserError
from nestor.runtime.artifact import read_artifact
from nestor.runtime.gpu_launches import choose_code
from nestor.runtime.manifest import Manifest, TargetInfo, check_manifest

NET = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.LayerNorm(48), nn.Linear(48, 10))
    return net.eval(), (torch.zeros(3, 64),)
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for two architectures, compiled in a process where Triton compiles."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "net.py").write_text(NET)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    line = ["compile", "net.py:make", "-o", "net.nst", "--target", "sm_80,sm_90"]
    done = subprocess.run(
        [sys.executable, "-m", "nestor", *line],
        cwd=folder, env=env | {"NESTOR_CACHE_DIR": str(folder / "cache")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sm_80, sm_90" in done.stdout
    return folder / "net.nst"


def test_it_has_code_for_each(artifact: Path) -> None:
    contents = read_artifact(artifact)
    assert [m.target.name for m in contents.manifests] == ["sm_80", "sm_90"]
    for manifest in contents.manifests:
        assert manifest.launches
        assert all(launch.parameters > 2 for launch in manifest.launches)
        codes = [contents.objects[f.object] for f in manifest.functions]
        assert all(code.startswith(b"\x7fELF") for code in codes)
    first, second = contents.manifests
    assert {f.object for f in first.functions}.isdisjoint(f.object for f in second.functions)
    assert Manifest.from_json(first.to_json()) == first


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_loading_it_without_a_gpu(artifact: Path) -> None:
    with pytest.raises(Unsupported, match="PyTorch finds none"):
        nestor.load(artifact)


def test_which_code_a_chip_runs(artifact: Path) -> None:
    like = read_artifact(artifact).manifests[0]

    def manifest(number: int, shared_kb: int) -> Manifest:
        launches = tuple(replace(n, shared_bytes=shared_kb << 10) for n in like.launches)
        return replace(like, target=replace(like.target, name=f"sm_{number}"), launches=launches)

    every = [manifest(80, 40), manifest(86, 90), manifest(90, 200), manifest(100, 200)]

    def chosen(capability: int, shared_kb: int) -> str:
        return choose_code(every, capability, shared_kb << 10, "f").target.name

    assert chosen(80, 163) == "sm_80"
    assert chosen(86, 99) == chosen(89, 99) == "sm_86"
    assert chosen(89, 64) == "sm_80"
    assert chosen(90, 227) == "sm_90"
    assert chosen(100, 227) == "sm_100"
    with pytest.raises(ArtifactError, match=r"f: its code is for sm_80, sm_86[\s\S]*sm_103"):
        chosen(103, 227)
    with pytest.raises(
        ArtifactError, match=r"more shared memory than this GPU has: 32768[\s\S]*sm_87"
    ):
        chosen(87, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"launches": ()}, "not one for each function"),
        ({"warps": 0}, "not what a GPU can start"),
        ({"written": []}, "a kernel that writes nothing"),
        ({"shared_bytes": -1}, "not what a GPU can start"),
        ({"grid": ("N",)}, "grid"),
    ],
)
def test_manifests_are_checked(artifact: Path, change: dict[str, object], message: str) -> None:
    manifest = read_artifact(artifact).manifests[0]
    data = manifest.to_json()
    if "launches" in change:
        data["launches"] = []
    else:
        data["launches"][0] |= change
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_json(data)


def test_a_cpu_starts_no_kernels_of_a_gpu(artifact: Path) -> None:
    manifest = read_artifact(artifact).manifests[0]
    target = TargetInfo(triple="x86_64-unknown-linux-gnu", features=())
    with pytest.raises(ArtifactError):
        check_manifest(replace(manifest, target=target))


def test_a_model_for_another_machine_is_not_called(tmp_path: Path) -> None:
    """Nothing needs a GPU until it is called; here it is refused with what to do."""
    code = (
        "import torch, nestor; from torch import nn\n"
        "fast = nestor.compile(nn.Linear(64, 32), (torch.zeros(2, 64),), target='sm_90')\n"
        "try: fast(torch.zeros(2, 64))\n"
        "except nestor.UserError as error: print(error)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"NESTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "compiled for sm_90, not to be called here" in done.stdout, done.stderr


def test_an_unknown_gpu() -> None:
    with pytest.raises(UserError, match="'sm_99' is no GPU that code is generated for"):
        nestor.compile(torch.nn.Linear(4, 4), (torch.zeros(1, 4),), target="sm_80,sm_99")
