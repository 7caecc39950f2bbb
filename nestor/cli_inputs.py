"""Arrays in and out of the command line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestor.errors import OutputError, UserError
from nestor.runtime.dims import evaluate_all
from nestor.runtime.tensors import BITS_ONLY, DTYPE_NAMES

if TYPE_CHECKING:
    from nestor.runtime.manifest import Manifest

Array = NDArray[Any]

_NUMPY_NAMES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "uint16",
    "f8e4m3": "uint8", "f8e5m2": "uint8",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip


def read_inputs(files: Sequence[str]) -> list[Array]:
    """The arrays of ``.npy`` and ``.npz`` files, in the order of files and within each.

    Raises: UserError for a file that is missing or holds something else.
    """
    arrays: list[Array] = []
    for file in files:
        try:
            # Pickles run code when they are read, so they are refused.
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                arrays.append(loaded)
            else:
                with loaded:
                    arrays += [loaded[name] for name in loaded.files]
        except FileNotFoundError:
            raise UserError(f"--input: no file {file!r}") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"--input: {file!r} is not a .npy or .npz of arrays: {error}"
            ) from error
    return arrays


def random_inputs(manifest: Manifest, seed: int) -> list[Any]:
    """Inputs of the shapes that an artifact wants: its symbols at their least, but not 0.

    Floats are standard normal; integers and booleans are 0 or 1, which is a token and a mask of
    every model.
    """
    rng = np.random.default_rng(seed)
    # A size of 0 is allowed in most models, and shows nothing.
    symbols = {s.name: max(1, s.lower) for s in manifest.symbols}
    made: list[Any] = []
    for spec in manifest.inputs:
        if spec.kind == "constant":
            made.append(spec.constant)
        elif spec.kind == "integer":
            assert spec.value is not None
            made.append(evaluate_all([spec.value], symbols)[0])
        elif spec.kind == "ignored" or spec.slot is None:
            made.append(None)
        else:
            slot = manifest.slots[spec.slot]
            made.append(_random_array(rng, slot.dtype, evaluate_all(slot.shape, symbols)))
    return made


def _random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype in BITS_ONLY:
        raise UserError(f"--random cannot make {DTYPE_NAMES[dtype]}, which NumPy lacks")
    numpy_dtype = np.dtype(_NUMPY_NAMES[dtype])
    if numpy_dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(numpy_dtype)
    return rng.integers(0, 2, shape).astype(numpy_dtype)


def write_arrays(file: str, arrays: Sequence[Array]) -> None:
    """Write outputs: one array to ``.npy``, any number to ``.npz`` (``output0``, …).

    The file appears whole or not at all.
    Raises: UserError for another ending, OutputError when it cannot be written.
    """
    path = Path(file)
    if path.suffix not in (".npy", ".npz"):
        raise UserError(f"--output {file!r} must end in .npy or .npz")
    if path.suffix == ".npy" and len(arrays) != 1:
        raise UserError(f"--output {file!r} holds one array, and there are {len(arrays)}: use .npz")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            if path.suffix == ".npy":
                np.save(stream, arrays[0])
            else:
                named: dict[str, Any] = {f"output{i}": a for i, a in enumerate(arrays)}
                np.savez(stream, **named)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {file!r}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def describe_array(position: int, array: Array) -> dict[str, Any]:
    """Shape, dtype and a few figures of an output, as plain data."""
    about: dict[str, Any] = {
        "output": position,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
    }
    if array.size and array.dtype.kind in "fiub":
        values = array.astype(np.float64)
        about |= {
            "min": float(values.min()),
            "max": float(values.max()),
            "mean": float(values.mean()),
        }
    return about


def load_artifact_example(path: str, files: list[str], seed: int) -> tuple[Any, list[Any]]:
    """An artifact and inputs for it, for a peer's process: from ``files``, else random."""
    import nestor

    loaded = nestor.load(path)
    return loaded, read_inputs(files) if files else random_inputs(loaded.manifest, seed)
