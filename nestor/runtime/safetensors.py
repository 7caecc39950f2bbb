"""Weights in the safetensors format: 8 bytes of length, a JSON header, the data.

Every tensor starts at a multiple of 64 bytes; since the format allows no holes, the gaps are
entries of their own, named ``__padding_N``.

Source: the format's description in the README of huggingface/safetensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from nestor.errors import ArtifactError
from nestor.runtime.manifest import ITEM_BYTES
from nestor.runtime.tensors import NUMPY, NUMPY_DTYPES, library_of

ALIGNMENT = 64
_PADDING = "__padding_"
_MAX_HEADER_BYTES = 100 << 20

FORMAT_NAMES = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16",
    "f8e4m3": "F8_E4M3", "f8e5m2": "F8_E5M2", "i64": "I64", "i32": "I32",
    "i16": "I16", "i8": "I8", "u8": "U8", "bool": "BOOL",
}  # fmt: skip
_OUR_NAMES = {name: dtype for dtype, name in FORMAT_NAMES.items()}


def serialize(arrays: Mapping[str, tuple[Any, str]]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, in pieces.

    Args:
        arrays: ``(array, dtype of ours)`` by name; NumPy or PyTorch, any strides.
    """
    header: dict[str, Any] = {}
    contents: list[memoryview | bytes] = []
    offset = 0
    for name, (array, dtype) in arrays.items():
        if name.startswith(_PADDING) or name == "__metadata__":
            raise ValueError(f"a weight cannot be called '{name}'")
        gap = -offset % ALIGNMENT
        if gap:
            header[f"{_PADDING}{len(header)}"] = {
                "dtype": "U8", "shape": [gap], "data_offsets": [offset, offset + gap],
            }  # fmt: skip
            contents.append(bytes(gap))
            offset += gap
        size = prod(array.shape) * ITEM_BYTES[dtype]
        header[name] = {
            "dtype": FORMAT_NAMES[dtype], "shape": list(array.shape),
            "data_offsets": [offset, offset + size],
        }  # fmt: skip
        contents.append(_bytes_of(array, dtype))
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    yield struct.pack("<Q", len(text)) + text
    yield from contents


def _bytes_of(array: Any, dtype: str) -> memoryview:
    library = library_of(array)
    if library is not None and library is not NUMPY:
        # As bytes, for NumPy has no bfloat16.
        array = array.detach().contiguous().reshape(-1).view(_torch_bytes(array)).numpy()
    dense = np.ascontiguousarray(array)
    if dense.nbytes == 0:
        return memoryview(b"")
    return dense.reshape(-1).view(np.uint8).data


def _torch_bytes(array: Any) -> Any:
    import sys

    return sys.modules["torch"].uint8


def deserialize(data: memoryview, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """Read-only arrays over ``data``, by name, without a copy.

    Raises:
        ArtifactError: malformed; ``where`` names the file.
    """
    if len(data) < 8:
        raise ArtifactError(f"{where}: its weights are truncated")
    (size,) = struct.unpack_from("<Q", data)
    if size > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise ArtifactError(f"{where}: its weights' header is truncated")
    try:
        header = json.loads(bytes(data[8 : 8 + size]))
    except ValueError:
        raise ArtifactError(f"{where}: its weights' header is not JSON") from None
    if not isinstance(header, dict):
        raise ArtifactError(f"{where}: its weights' header is not an object")
    body = data[8 + size :]
    return {
        name: _array(body, entry, f"{where}: weight '{name}'")
        for name, entry in header.items()
        if name != "__metadata__" and not name.startswith(_PADDING)
    }


def _array(body: memoryview, entry: Any, where: str) -> np.ndarray[Any, Any]:
    match entry:
        case {"dtype": str(name), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            dtype = _OUR_NAMES.get(name)
        case _:
            raise ArtifactError(f"{where} has a malformed entry")
    if dtype is None or not all(isinstance(s, int) and 0 <= s < 1 << 48 for s in shape):
        raise ArtifactError(f"{where} has an unknown dtype or shape")
    if end - start != prod(shape) * ITEM_BYTES[dtype] or not 0 <= start <= end <= len(body):
        raise ArtifactError(f"{where} lies outside the file, or its size is wrong")
    if start == end:
        return np.empty(shape, NUMPY_DTYPES[dtype])
    flat = np.frombuffer(body[start:end], NUMPY_DTYPES[dtype])
    return flat.reshape(shape)
