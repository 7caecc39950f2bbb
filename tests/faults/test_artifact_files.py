"""Artifacts: round trip, damage of every kind, kills, full disks, other CPUs, bare environments."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nestor.errors import ArtifactError, OutputError
from nestor.runtime import artifact, cpu
from nestor.runtime.artifact import load_artifact, read_artifact, save_artifact
from nestor.runtime.executable import Executable
from nestor.runtime.manifest import ExternCall, TargetInfo, WeightSource
from tests.helpers.native import ADD, DOUBLE, INCREMENT, ModelMaker, chain, pointwise

ROOT = Path(__file__).resolve().parents[2]
WEIGHT = np.arange(32, dtype=np.float32).reshape(4, 8)


@pytest.fixture
def saved(tmp_path) -> Path:
    manifest, objects = chain((4, 8))
    path = tmp_path / "model.nst"
    assert save_artifact(path, manifest, objects, {"w": WEIGHT}) == path.stat().st_size
    return path


def test_round_trip(saved):
    model = load_artifact(saved)
    x = np.random.default_rng(0).random((4, 8), np.float32)
    np.testing.assert_array_equal(model(x), 2 * (x + 1) + WEIGHT)
    t = torch.from_numpy(x)
    assert torch.equal(model(t), 2 * (t + 1) + torch.from_numpy(WEIGHT))
    assert "chain" in repr(model)
    assert list(saved.parent.iterdir()) == [saved]
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~artifact._umask()


def test_weights_lie_in_the_mapped_file_aligned(saved):
    contents = read_artifact(saved)
    assert not contents.weights["w"].flags.writeable
    assert contents.weights["w"].ctypes.data % 64 == 0
    model = Executable(contents.manifests[0], contents.objects, contents.weights)
    assert model._weights.entries == [(1, contents.weights["w"].ctypes.data)]


def test_every_dtype_and_layout_survives(tmp_path):
    m = ModelMaker()
    arrays = {
        "f64": torch.rand(3, 2, dtype=torch.float64), "f32": torch.rand(5)[::2],
        "f16": torch.rand(3, 3).half().t(), "bf16": torch.rand(7).bfloat16(),
        "i64": torch.tensor(-5), "i32": np.arange(3, dtype=np.int32),
        "i16": torch.ones(2, 3).short(),
        "i8": torch.tensor([[-1]], dtype=torch.int8), "u8": np.zeros((0, 4), np.uint8),
        "bool": torch.tensor([True, False, True]),
    }  # fmt: skip
    sources = []
    for dtype, array in arrays.items():
        slot = m.slot(dtype, tuple(array.shape), "parameter", dtype)
        sources.append(WeightSource(slot=slot, key=f"layer.{dtype}"))
    x = m.slot("x", (3,), "input")
    y = m.slot("y", (3,), "output")
    m.kernel(pointwise(DOUBLE, "3"), (x, y))
    manifest = m.manifest([y], weights=tuple(sources))
    path = tmp_path / "m.nst"
    save_artifact(path, manifest, m.objects, {f"layer.{k}": v for k, v in arrays.items()})
    found = read_artifact(path).weights
    for dtype, array in arrays.items():
        got = found[f"layer.{dtype}"]
        assert got.ctypes.data % 64 == 0 or got.size == 0
        want = array.contiguous().view(torch.uint16) if dtype == "bf16" else array
        np.testing.assert_array_equal(got, np.asarray(want))
    assert load_artifact(path)(np.ones(3, np.float32)).tolist() == [2, 2, 2]


def test_weights_section_is_readable_by_safetensors(saved, tmp_path):
    from safetensors.numpy import load

    header = json.loads(_header(saved)[1])
    section = next(s for s in header["sections"] if s["name"] == "weights")
    data = saved.read_bytes()[section["offset"] : section["offset"] + section["bytes"]]
    np.testing.assert_array_equal(load(data)["w"], WEIGHT)


def _header(path: Path) -> tuple[int, bytes]:
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data, 16)[0]
    return size, data[56 : 56 + size]


def test_every_truncation_is_named(saved):
    data = saved.read_bytes()
    for size in [*range(0, 600, 13), *range(600, len(data), 997), len(data) - 1]:
        saved.write_bytes(data[:size])
        with pytest.raises(ArtifactError, match="truncated"):
            load_artifact(saved)
    saved.write_bytes(data + b"\0")
    with pytest.raises(ArtifactError, match="longer than it was"):
        load_artifact(saved)


def test_every_flipped_bit_is_noticed(saved):
    data = bytearray(saved.read_bytes())
    source = random.Random(0)
    places = [*range(60), *(source.randrange(len(data)) for _ in range(400)), len(data) - 1]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << source.randrange(8)
        saved.write_bytes(flipped)
        with pytest.raises(ArtifactError) as caught:
            load_artifact(saved)
        assert str(saved) in str(caught.value)
    saved.write_bytes(data)
    load_artifact(saved)


@pytest.mark.parametrize("name", ["manifests", "objects", "weights"])
def test_altered_section_is_named(saved, name):
    header = json.loads(_header(saved)[1])
    section = next(s for s in header["sections"] if s["name"] == name)
    data = bytearray(saved.read_bytes())
    data[section["offset"] + section["bytes"] // 2] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"section '{name}' was altered"):
        load_artifact(saved)


def test_other_files_and_versions(saved, tmp_path):
    other = tmp_path / "photo.nst"
    other.write_bytes(b"\x89PNG" + bytes(1000))
    with pytest.raises(ArtifactError, match="is not a Nestor artifact"):
        load_artifact(other)
    with pytest.raises(ArtifactError, match="No such file"):
        load_artifact(tmp_path / "absent.nst")
    with pytest.raises(ArtifactError, match="Is a directory"):
        load_artifact(tmp_path)
    data = bytearray(saved.read_bytes())
    data[8] = 9
    saved.write_bytes(data)
    with pytest.raises(ArtifactError, match="format version 9, this Nestor reads 1"):
        load_artifact(saved)


def _rewrite(path: Path, **sections: bytes) -> None:
    """An artifact whose checksums are right and whose contents are not."""
    listing = json.loads(_header(path)[1])
    data = path.read_bytes()
    pieces = {
        s["name"]: [sections.get(s["name"], data[s["offset"] : s["offset"] + s["bytes"]])]
        for s in listing["sections"]
    }
    artifact._write_container(path, pieces)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"manifests": b"{"}, "manifest is not JSON"),
        ({"manifests": b"[]"}, "holds no manifest"),
        ({"manifests": b"[{}]"}, "manifest 0: format version None"),
        ({"objects": b""}, "'objects' is malformed"),
        ({"objects": b"\xff" * 30}, "'objects' is malformed"),
        ({"objects": struct.pack("<Q", 9) + b'[["a",4]]1234'}, "object code a was altered"),
        ({"objects": struct.pack("<Q", 2) + b"[]"}, "object code .* is missing"),
        ({"weights": b""}, "weights are truncated"),
        ({"weights": b"\xff" * 8}, "weights' header is truncated"),
        ({"weights": struct.pack("<Q", 2) + b"{}"}, "weight 'w' is missing"),
        ({"weights": struct.pack("<Q", 8) + b'{"w": 3}'}, "weight 'w' has a malformed entry"),
    ],
)
def test_contents_that_make_no_sense(saved, sections, message):
    _rewrite(saved, **sections)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(saved)


def test_weight_outside_the_file(saved):
    text = json.dumps({"w": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}}).encode()
    _rewrite(saved, weights=struct.pack("<Q", len(text)) + text + bytes(100))
    with pytest.raises(ArtifactError, match="weight 'w' lies outside the file"):
        load_artifact(saved)


def test_code_for_another_cpu_names_what_is_missing(saved, tmp_path):
    manifest, objects = chain((4, 8))
    target = TargetInfo(triple="x86_64", name="x86-64-v9", features=("avx2", "avx9999", "sse4.2"))
    other = dataclasses.replace(manifest, target=target)
    save_artifact(saved, other, objects, {"w": WEIGHT})
    with pytest.raises(ArtifactError, match=r"(?s)x86-64-v9.* lacks avx9999\n.*--target x86-64-v3"):
        load_artifact(saved)


def test_feature_names_of_llvm_and_of_the_kernel(monkeypatch):
    flags = "pni ssse3 sse4_1 sse4_2 abm avx512_vnni avx512f bmi1 bmi2 avx_vnni amx_tile"
    have = frozenset(cpu._plain(f) for f in flags.split())
    monkeypatch.setattr(cpu, "machine_features", lambda: have)
    names = (
        "sse3", "sse4.1", "sse4.2", "lzcnt", "avx512vnni", "avx512f", "bmi", "avxvnni",
        "amx-tile", "pni", "sse4_2", "avx512_vnni",
    )  # fmt: skip
    assert cpu.missing_features(TargetInfo(triple="", features=names)) == ()
    wrong = TargetInfo(triple="", features=("avx2", "avx512bf16", "avx512f"))
    assert cpu.missing_features(wrong) == ("avx2", "avx512bf16")


def test_best_variant_that_runs_is_chosen(tmp_path):
    """One artifact, three instruction sets, packed for each: the best that runs here is taken."""
    manifests, objects, weights = [], {}, {}
    for name, features, body in [
        ("baseline", ("sse2",), DOUBLE),
        ("better", ("sse2", "avx", "avx2"), INCREMENT),
        ("future", ("sse2", "avx", "avx2", "avx9999"), ADD),
    ]:
        m = ModelMaker("many")
        x = m.slot("x", (3,), "input")
        w = m.slot("w", (3,), "parameter")
        y = m.slot("y", (3,), "output")
        del w
        m.kernel(pointwise(body, "3", 2), (x, 1, y))
        manifests.append(
            m.manifest(
                [y],
                target=TargetInfo(triple="x86_64", features=features, name=name),
                weights=(WeightSource(slot=1, key=f"w.{name}"),),
            )
        )
        objects |= m.objects
        weights[f"w.{name}"] = np.full(3, len(name), np.float32)
    path = tmp_path / "many.nst"
    save_artifact(path, manifests, objects, weights)
    model = load_artifact(path)
    assert model.manifest.target.name == "better"
    assert model(np.zeros(3, np.float32)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["no_folder", "is_folder", "device", "file_as_folder"])
def test_paths_that_cannot_be_written(tmp_path, kind):
    manifest, objects = chain((4, 8))
    (tmp_path / "file").write_text("")
    path, message = {
        "no_folder": (tmp_path / "absent" / "m.nst", "create the folder"),
        "is_folder": (tmp_path, "it is a folder"),
        "device": (Path("/dev/null"), "not an ordinary file"),
        "file_as_folder": (tmp_path / "file" / "m.nst", "create the folder"),
    }[kind]
    with pytest.raises(OutputError, match=message):
        save_artifact(path, manifest, objects, {"w": WEIGHT})
    assert Path("/dev/null").is_char_device()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    manifest, objects = chain((4, 8))
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="choose a folder that you may write to"):
        save_artifact(tmp_path / "m.nst", manifest, objects, {"w": WEIGHT})


FULL = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from nestor.errors import OutputError
from nestor.runtime.artifact import save_artifact
from tests.helpers.native import chain
manifest, objects = chain((64, 1024))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # like a disk that fills up
try:
    save_artifact(Path(sys.argv[1]), manifest, objects, {"w": np.zeros((64, 1024), np.float32)})
except OutputError as error:
    print(error)
    sys.exit(7)
"""


def test_disk_that_fills_up_leaves_the_old_file_alone(saved):
    before = saved.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(saved)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "cannot write" in done.stdout
    assert "fix:" in done.stdout
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_space_and_quota_errors_say_so(saved, monkeypatch):
    manifest, objects = chain((4, 8))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"(?s)No space left.*free some space"):
        save_artifact(saved, manifest, objects, {"w": WEIGHT})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


WRITER = """
import sys
import numpy as np
from pathlib import Path
from nestor.runtime.artifact import save_artifact
from tests.helpers.native import chain
manifest, objects = chain((256, 1024))
weights = {"w": np.ones((256, 1024), np.float32)}
while True:
    save_artifact(Path(sys.argv[1]), manifest, objects, weights)
    print("written", flush=True)
"""


def test_writer_killed_at_any_instant_leaves_a_whole_file(tmp_path):
    path = tmp_path / "m.nst"
    for wait in (0.0, 0.003, 0.01, 0.017):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        model = load_artifact(path)
        assert (model(np.zeros((256, 1024), np.float32)) == 3).all()
    left = [p for p in tmp_path.iterdir() if p != path]
    # At most the instant between naming and renaming; nothing while the file is written.
    assert len(left) <= 1


def test_file_systems_without_nameless_files(saved, monkeypatch):
    manifest, objects = chain((4, 8))
    monkeypatch.delattr(os, "O_TMPFILE")
    save_artifact(saved, manifest, objects, {"w": WEIGHT + 1})
    np.testing.assert_array_equal(load_artifact(saved)(np.zeros((4, 8), np.float32)), 3 + WEIGHT)
    assert list(saved.parent.iterdir()) == [saved]


def test_overwriting_a_loaded_artifact_does_not_disturb_it(saved):
    model = load_artifact(saved)
    manifest, objects = chain((4, 8))
    save_artifact(saved, manifest, objects, {"w": WEIGHT * 0})
    x = np.zeros((4, 8), np.float32)
    np.testing.assert_array_equal(model(x), 2 + WEIGHT)
    np.testing.assert_array_equal(load_artifact(saved)(x), 2 + 0 * WEIGHT)


def test_missing_parts_are_refused_when_saving(tmp_path):
    manifest, objects = chain((4, 8))
    with pytest.raises(ArtifactError, match="weight 'w' is missing"):
        save_artifact(tmp_path / "m.nst", manifest, objects, {})
    with pytest.raises(ArtifactError, match="object code"):
        save_artifact(tmp_path / "m.nst", manifest, {}, {"w": WEIGHT})
    assert not list(tmp_path.iterdir())


def test_pytorch_operators_are_refused(tmp_path):
    m = ModelMaker("calls")
    x = m.slot("x", (3,), "input")
    y = m.slot("y", (3,), "output")
    m.calls.append(ExternCall(operator="aten.sort", arguments=[], inputs=(x,), outputs=(y,)))
    with pytest.raises(ArtifactError, match=r"calls PyTorch operators \(aten\.sort\)"):
        save_artifact(tmp_path / "m.nst", m.manifest([y]), m.objects, {})
    assert not list(tmp_path.iterdir())


BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        blocked = {"torch", "llvmlite", "islpy", "safetensors", "rich", "typer", "transformers"}
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Refuse())
sys.path[:] = [p for p in sys.path if "site-packages" not in p] + [sys.argv[2], sys.argv[3]]
import numpy as np
import nestor
model = nestor.load(sys.argv[1])
x = np.ones((4, 8), np.float32)
y = model(x)
assert type(y) is np.ndarray
np.testing.assert_array_equal(y, 4 + np.arange(32, dtype=np.float32).reshape(4, 8))
packages = {m.split(".")[0] for m in sys.modules} - set(sys.stdlib_module_names)
print(*sorted(p for p in packages if not p.startswith(("_", "encodings", "sitecustomize"))))
"""


def test_runs_with_numpy_alone(saved, tmp_path):
    packages = Path(np.__file__).resolve().parents[1]
    only = tmp_path / "only"
    only.mkdir()
    for name in ("numpy", "numpy.libs"):
        if (packages / name).exists():
            (only / name).symlink_to(packages / name)
    done = subprocess.run(
        [sys.executable, "-S", "-c", BARE, str(saved), str(only), str(ROOT)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["nestor", "numpy"]


def test_copies_of_an_artifact_run(saved, tmp_path):
    copy = tmp_path / "copy of it.nst"
    shutil.copy(saved, copy)
    saved.unlink()
    load_artifact(str(copy))(np.zeros((4, 8), np.float32))
