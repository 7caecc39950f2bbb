"""Artifacts: one ``.nst`` file that holds everything needed to run a model.

The container, all numbers little endian:

========  ======================================================================================
offset    contents
========  ======================================================================================
0         magic ``\\x93NESTOR\\n``
8         ``u32`` format version (1), ``u32`` reserved (0)
16        ``u64`` length of the header
24        SHA-256 of the header (32 bytes)
56        header: JSON ``{"file_bytes", "sections": [{"name", "offset", "bytes", "sha256"}]}``
…         sections, each at a multiple of 4096: ``manifests`` (a JSON list, one manifest for each
          instruction set), ``objects`` (JSON ``[[digest, bytes], …]`` behind a ``u64`` length, then
          the object files one after the other), ``weights`` (a safetensors file)
========  ======================================================================================

Loading needs the standard library and NumPy. Weights are used where they lie in the mapped file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from nestor.errors import ArtifactError, OutputError
from nestor.runtime import safetensors
from nestor.runtime.cpu import choose_variant
from nestor.runtime.executable import Executable
from nestor.runtime.manifest import Manifest, check_manifest

if TYPE_CHECKING:
    from nestor.runtime.gpu_executable import GpuExecutable

MAGIC = b"\x93NESTOR\n"
FORMAT_VERSION = 1
_HEAD = struct.Struct("<8sIIQ32s")
_ALIGNMENT = 4096
_CHUNK = 8 << 20
_SECTIONS = ("manifests", "objects", "weights")


def save_artifact(
    path: str | Path,
    manifest: Manifest | Sequence[Manifest],
    objects: Mapping[str, bytes],
    weights: Mapping[str, Any],
) -> int:
    """Write an artifact, whole or not at all.

    Args:
        manifest: one, or one for each instruction set, all of the same model.
        objects: object code by digest, for all of them.
        weights: arrays by key, NumPy or PyTorch, for all of them.

    Returns:
        its size [bytes].

    Raises:
        OutputError: the file cannot be written; an old file is untouched.
        ArtifactError: objects or weights are missing, or it calls PyTorch operators.
    """
    path = Path(path)
    manifests = [manifest] if isinstance(manifest, Manifest) else list(manifest)
    if not manifests:
        raise ValueError("an artifact needs a manifest")
    for one in manifests:
        check_manifest(one)
        if one.externs:
            names = ", ".join(dict.fromkeys(e.operator for e in one.externs))
            raise ArtifactError(
                f"model '{one.name}' calls PyTorch operators ({names}), so it cannot run without "
                "PyTorch\n  fix: replace them in the model"
            )
    pieces: dict[str, Sequence[bytes | memoryview]] = {
        "manifests": [json.dumps([m.to_json() for m in manifests]).encode()],
        "objects": list(_object_section(manifests, objects)),
        "weights": list(safetensors.serialize(_needed_weights(manifests, weights))),
    }
    return _write_container(path, pieces)


def _object_section(manifests: list[Manifest], objects: Mapping[str, bytes]) -> Iterator[bytes]:
    digests = list(dict.fromkeys(d for m in manifests for d in m.object_digests))
    for digest in digests:
        if digest not in objects:
            raise ArtifactError(f"object code {digest} is missing")
    index = json.dumps([[d, len(objects[d])] for d in digests]).encode()
    yield struct.pack("<Q", len(index)) + index
    for digest in digests:
        yield objects[digest]


def _needed_weights(
    manifests: list[Manifest], weights: Mapping[str, Any]
) -> dict[str, tuple[Any, str]]:
    needed: dict[str, tuple[Any, str]] = {}
    for manifest in manifests:
        for source in manifest.weights:
            if source.key not in weights:
                raise ArtifactError(f"weight '{source.key}' is missing")
            slot = manifest.slots[source.slot]
            needed[source.key] = (weights[source.key], slot.dtype)
    return needed


def _write_container(path: Path, pieces: Mapping[str, Sequence[bytes | memoryview]]) -> int:
    sizes = {name: sum(len(p) for p in parts) for name, parts in pieces.items()}
    digests = {name: _digest(parts) for name, parts in pieces.items()}
    header = _layout_header(sizes, digests)
    head = _HEAD.pack(MAGIC, FORMAT_VERSION, 0, len(header), hashlib.sha256(header).digest())
    sections = json.loads(header)["sections"]

    def write(file: IO[bytes]) -> None:
        file.write(head + header)
        for section in sections:
            file.write(bytes(section["offset"] - file.tell()))
            for piece in pieces[section["name"]]:
                file.write(piece)

    write_atomically(path, write)
    return int(json.loads(header)["file_bytes"])


def _layout_header(sizes: Mapping[str, int], digests: Mapping[str, str]) -> bytes:
    """The header; its own length moves the sections, so it is made until it fits."""
    room = 1024
    while True:
        offset = -(-(_HEAD.size + room) // _ALIGNMENT) * _ALIGNMENT
        sections = []
        for name, size in sizes.items():
            sections.append(
                {"name": name, "offset": offset, "bytes": size, "sha256": digests[name]}
            )
            end = offset + size
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        header = json.dumps({"file_bytes": end, "sections": sections}).encode()
        if len(header) <= room:
            return header
        room = len(header)


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Call ``write(file)`` on a file that takes the place of ``path`` only when complete.

    Raises:
        OutputError: says why and what to do; nothing is left behind.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not an ordinary file"
        raise OutputError(f"cannot write {path}: it is {kind}\n  fix: give the name of a file")
    temporary: Path | None = None
    try:
        handle, temporary, has_name = _open_temporary(path)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
            if not has_name:
                _give_name(file.fileno(), temporary)
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _open_temporary(path: Path) -> tuple[int, Path, bool]:
    """A file in the folder of ``path``: its handle, its name, and whether it has that name yet.

    Where the system can, the file gets its name when it is complete, so that a killed process
    leaves nothing.
    """
    if hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").exists():
        with contextlib.suppress(OSError):
            handle = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            token = hashlib.sha256(os.urandom(16)).hexdigest()[:12]
            return handle, path.parent / f".{path.name[:200]}.{token}.tmp", False
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:200]}.", suffix=".tmp", dir=path.parent)
    return handle, Path(name), True


def _give_name(handle: int, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # With a folder's handle Python calls linkat, which follows the link to the open file.
        os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _umask() -> int:
    """The process's umask: a temporary file is private, the finished one is like any other."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot; the rename itself is done
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _output_error(path: Path, error: OSError) -> OutputError:
    if not path.parent.is_dir():
        fix = f"create the folder {path.parent} first"
    elif isinstance(error, PermissionError) or error.errno == 30:
        fix = f"choose a folder that you may write to, or change the permissions of {path.parent}"
    elif error.errno in (28, 122):
        fix = "free some space, or choose another disk"
    else:
        fix = "choose another path"
    return OutputError(f"cannot write {path}: {error.strerror or error}\n  fix: {fix}")


@dataclass(frozen=True, slots=True)
class ArtifactContents:
    """A verified artifact: its manifests, its code, and its weights in the mapped file."""

    path: Path
    manifests: tuple[Manifest, ...]
    objects: dict[str, bytes]
    weights: dict[str, np.ndarray[Any, Any]]


class LoadedModel:
    """A model from an artifact; call it as the model it was made of.

    Attributes:
        path: of the artifact.
        manifest: of the variant that this machine runs.
        executable: what runs it.
    """

    def __init__(self, contents: ArtifactContents, threads: int | None = None):
        self.path = contents.path
        targets = [m.target for m in contents.manifests]
        self.executable: Executable | GpuExecutable
        if all(t.is_gpu for t in targets):
            self.manifest, self.executable = _on_gpu(contents)
            return
        position = choose_variant(targets, str(contents.path))
        self.manifest = contents.manifests[position]
        self.executable = Executable(
            self.manifest, contents.objects, contents.weights, threads=threads
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; see ``Executable.__call__``."""
        return self.executable(*args, **kwargs)

    def __repr__(self) -> str:
        names = ", ".join(s.name for s in self.manifest.inputs)
        return f"<nestor model '{self.manifest.name}' ({names}) from {self.path}>"


def _on_gpu(contents: ArtifactContents) -> tuple[Manifest, GpuExecutable]:
    """A model on PyTorch's current GPU, with the code that the chip runs."""
    from nestor.runtime.gpu_executable import GpuExecutable
    from nestor.runtime.gpu_launches import (
        choose_code,
        cuda_launches,
        current_gpu,
        graph_maker,
    )

    where = str(contents.path)
    device, capability, shared_bytes = current_gpu(where)
    manifest = choose_code(contents.manifests, capability, shared_bytes, where)
    launches = cuda_launches(manifest, contents.objects, device)
    return manifest, GpuExecutable(
        manifest, launches, contents.weights, device, make_graph=graph_maker(device)
    )


def load_artifact(path: str | Path, *, threads: int | None = None) -> LoadedModel:
    """Load a model.

    Args:
        threads: of a call; None: see ``threads.thread_count``.

    Raises:
        ArtifactError: there is no such file, it is truncated, altered, of another version, or for
            another CPU; says which, and what to do.
    """
    return LoadedModel(read_artifact(path), threads)


def read_artifact(path: str | Path) -> ArtifactContents:
    """Read and verify an artifact without loading its code. Raises ArtifactError."""
    path = Path(path)
    data = _map_file(path)
    sections = _verified_sections(path, data)
    try:
        listed = json.loads(bytes(sections["manifests"]))
    except ValueError:
        raise ArtifactError(f"{path}: its manifest is not JSON") from None
    if not isinstance(listed, list) or not listed:
        raise ArtifactError(f"{path}: it holds no manifest")
    manifests = tuple(Manifest.from_json(m, f"{path}: manifest {i}") for i, m in enumerate(listed))
    for manifest in manifests:
        if manifest.externs:
            raise ArtifactError(f"{path}: it calls operators of PyTorch")
    objects = _read_objects(path, sections["objects"])
    weights = safetensors.deserialize(sections["weights"], str(path))
    return ArtifactContents(path, manifests, objects, weights)


def _map_file(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _HEAD.size:
                raise ArtifactError(
                    f"{path}: {size} bytes are too few for an artifact (truncated?)"
                )
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}: {error.strerror or error}\n"
            "  fix: check the path; write artifacts with nestor compile MODEL -o FILE.nst"
        ) from error


def _verified_sections(path: Path, data: memoryview) -> dict[str, memoryview]:
    """The sections by name, every byte of them checked against its digest."""
    magic, version, reserved, size, digest = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ArtifactError(f"{path} is not a Nestor artifact")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format version {version}, this Nestor reads {FORMAT_VERSION}\n"
            "  fix: compile the model again with this version, or use the version that wrote it"
        )
    header = bytes(data[_HEAD.size : _HEAD.size + size]) if size < 1 << 30 else b""
    if len(header) != size:
        raise ArtifactError(f"{path} is truncated: its header is not complete")
    if hashlib.sha256(header).digest() != digest or reserved != 0:
        raise _altered(path, "header")
    try:
        return _check_sections(path, data, json.loads(header), _HEAD.size + size)
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(f"{path}: its header is malformed") from None


def _check_sections(
    path: Path, data: memoryview, listing: Any, offset: int
) -> dict[str, memoryview]:
    """Check every byte from ``offset`` on: sections by their digests, gaps for zeros."""
    if listing["file_bytes"] != len(data):
        state = "truncated" if listing["file_bytes"] > len(data) else "longer than it was"
        raise ArtifactError(
            f"{path} is {state}: {len(data)} of {listing['file_bytes']} bytes\n"
            "  fix: copy it again, or compile the model again"
        )
    sections = {}
    for section in listing["sections"]:
        start, end = section["offset"], section["offset"] + section["bytes"]
        if not offset <= start <= end <= len(data) or any(data[offset:start]):
            raise _altered(path, "header or padding")
        offset = end
        body = data[start:end]
        if _digest_of(body) != section["sha256"]:
            raise _altered(path, f"section '{section['name']}'")
        sections[section["name"]] = body
    if offset != len(data):
        raise _altered(path, "header")
    for name in _SECTIONS:
        if name not in sections:
            raise ArtifactError(f"{path}: section '{name}' is missing")
    return sections


def _digest_of(body: memoryview) -> str:
    return _digest(body[i : i + _CHUNK] for i in range(0, len(body), _CHUNK))


def _altered(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: its {what} was altered (the checksum differs)\n"
        "  fix: copy it again, or compile the model again"
    )


def _read_objects(path: Path, data: memoryview) -> dict[str, bytes]:
    try:
        (size,) = struct.unpack_from("<Q", data)
        index = json.loads(bytes(data[8 : 8 + size]))
        offset = 8 + size
        objects = {}
        for digest, length in index:
            code = bytes(data[offset : offset + length])
            if len(code) != length or hashlib.sha256(code).hexdigest() != digest:
                raise _altered(path, f"object code {digest[:12]}")
            objects[digest] = code
            offset += length
    except (struct.error, ValueError, TypeError):
        raise ArtifactError(f"{path}: its section 'objects' is malformed") from None
    return objects
