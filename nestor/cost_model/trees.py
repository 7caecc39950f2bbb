"""Evaluate gradient-boosted trees with NumPy alone, from a file that holds nothing but arrays.

An ensemble is one flat table of nodes, all trees one after the other. A row of features starts at
each tree's root and moves until it stands on leaves; all trees and rows move at once. Values are
float32 and trees are summed in their order, as xgboost does, so that predictions agree with its own
to the last bit or nearly so.

The file is an ``.npz`` archive that is read without pickle and checked before use: sizes, ranges of
indices, that children lie behind their parents (so that every walk ends), finite numbers.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestor.errors import UserError

FORMAT_VERSION = 1
MAX_FILE_BYTES = 64 << 20
"""No ensemble of ours is larger; a file that unpacks to more is refused."""

_ROWS = 256
"""Rows that move together: their places in a few hundred trees stay in the second-level cache."""

_ARRAYS = {
    "roots": np.int32,
    "feature": np.int16,
    "threshold": np.float32,
    "left": np.int32,
    "right": np.int32,
    "missing_left": np.bool_,
    "value": np.float32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEnsemble:
    """Trees, and the features that they are made for.

    Attributes:
        features_version: of the table of features.
        names: of the features, in order.
        base_score, start, slope: what a row starts from: ``base_score + slope * feature[start]``.
        roots: position of each tree's root, shape (trees,), int32.
        feature, threshold: of each node, shape (nodes,): a row goes left where its feature is less.
            Leaves have feature -1.
        left, right: positions of the children; a leaf's are its own.
        missing_left: where a row goes whose feature is NaN.
        value: of leaves; 0 elsewhere.
        card: how the ensemble was made: data only, for people and reports.
    """

    features_version: int
    names: tuple[str, ...]
    base_score: float
    roots: NDArray[np.int32]
    feature: NDArray[np.int16]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    missing_left: NDArray[np.bool_]
    value: NDArray[np.float32]
    start: int = 0
    slope: float = 0.0
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def depth(self) -> int:
        """Splits on the longest way from a root to a leaf."""
        level, standing = 0, self.roots
        while standing.size and np.any(self.feature[standing] >= 0):
            inner = standing[self.feature[standing] >= 0]
            standing = np.concatenate([self.left[inner], self.right[inner]])
            level += 1
        return level

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of rows of features.

        Args: features: shape (rows, len(names)), float32.
        Returns: shape (rows,), float32.
        Raises: ``UserError`` if the shape does not fit.
        """
        rows = np.ascontiguousarray(features, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != len(self.names):
            raise UserError(
                f"features have the shape {rows.shape}; this model takes (rows, {len(self.names)})"
            )
        out = np.full(len(rows), self.base_score, dtype=np.float32)
        if self.slope:
            out += np.float32(self.slope) * rows[:, self.start]
        if self.roots.size:
            steps = self.depth
            for start in range(0, len(rows), _ROWS):
                block = slice(start, start + _ROWS)
                out[block] = self._sum_leaves(rows[block], out[block], steps)
        return out

    def _sum_leaves(
        self, rows: NDArray[np.float32], scores: NDArray[np.float32], steps: int
    ) -> NDArray[np.float32]:
        """Scores plus the leaves that each row reaches, tree after tree."""
        at = np.repeat(self.roots[:, None], len(rows), axis=1)
        flat = np.ascontiguousarray(rows.T).reshape(-1)
        own = np.arange(len(rows), dtype=np.int64)
        has_missing = bool(np.isnan(rows).any())
        for _ in range(steps):
            feature = self.feature[at].astype(np.int64)
            values = flat[np.maximum(feature, 0) * len(rows) + own]
            goes_left = values < self.threshold[at]
            if has_missing:
                goes_left = np.where(np.isnan(values), self.missing_left[at], goes_left)
            at = np.where(goes_left, self.left[at], self.right[at])
        for leaves in self.value[at]:
            scores = scores + leaves
        return scores

    def save(self, path: Path) -> None:
        """Write the file; equal ensembles give equal bytes."""
        path.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        head = {
            "format": FORMAT_VERSION,
            "features_version": self.features_version,
            "names": list(self.names),
            "base_score": float(self.base_score),
            "start": self.start,
            "slope": float(self.slope),
            "card": self.card,
        }
        arrays: dict[str, NDArray[Any]] = {n: getattr(self, n) for n in _ARRAYS}
        text = json.dumps(head, sort_keys=True).encode()
        arrays["head"] = np.frombuffer(text, dtype=np.uint8)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(arrays):
                data = io.BytesIO()
                np.lib.format.write_array(data, arrays[name], allow_pickle=False)
                # A fixed date, so that bytes follow from the contents alone.
                entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, data.getvalue())
        return buffer.getvalue()


def average_ensembles(ensembles: Sequence[TreeEnsemble]) -> TreeEnsemble:
    """One that predicts the mean of several for the same features, with the first one's card."""
    first, count = ensembles[0], len(ensembles)
    sizes = np.cumsum([0, *(len(e.feature) for e in ensembles[:-1])]).astype(np.int32)
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(e, name) for e in ensembles])
        for name in ("feature", "threshold", "missing_left")
    }
    moved: dict[str, Any] = {
        name: np.concatenate([getattr(e, name) + shift for e, shift in zip(ensembles, sizes)])
        for name in ("roots", "left", "right")
    }
    return replace(
        first,
        base_score=sum(e.base_score for e in ensembles) / count,
        slope=sum(e.slope for e in ensembles) / count,
        value=(np.concatenate([e.value for e in ensembles]) / count).astype(np.float32),
        **joined,
        **moved,
    )


def load_ensemble(path: Path) -> TreeEnsemble:
    """Read a file that ``TreeEnsemble.save`` wrote.

    Raises: ``UserError`` if it is none, is damaged, or has another format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cost model {path}: cannot be read: {error}") from error
    return ensemble_from_bytes(data, str(path))


def ensemble_from_bytes(data: bytes, name: str = "cost model") -> TreeEnsemble:
    """Inverse of ``TreeEnsemble.to_bytes``. Raises: ``UserError`` for anything else."""
    try:
        arrays = _read_arrays(data)
        head = json.loads(arrays.pop("head").tobytes())
        if head["format"] != FORMAT_VERSION:
            raise ValueError(f"format {head['format']}, this version reads {FORMAT_VERSION}")
        return TreeEnsemble(
            features_version=int(head["features_version"]),
            names=tuple(str(n) for n in head["names"]),
            base_score=float(head["base_score"]),
            start=int(head["start"]),
            slope=float(head["slope"]),
            card=dict(head["card"]),
            **arrays,
        )
    except (ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{name}: not a valid file of trees: {error}") from error
    except (OSError, NotImplementedError, OverflowError, MemoryError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise UserError(f"{name}: damaged: {error}") from error


def _read_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Every array of the archive, none missing, none more, of the right types."""
    wanted: dict[str, Any] = {**_ARRAYS, "head": np.uint8}
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if sorted(e.filename for e in entries) != sorted(f"{n}.npy" for n in wanted):
            raise ValueError("other arrays than an ensemble has")
        if sum(e.file_size for e in entries) > MAX_FILE_BYTES:
            raise ValueError("it unpacks to more than an ensemble takes")
        for name, dtype in wanted.items():
            with archive.open(f"{name}.npy") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            if array.dtype != dtype or array.ndim != 1:
                raise ValueError(f"array '{name}' is {array.dtype} of shape {array.shape}")
            arrays[name] = array
    return arrays


def _check(e: TreeEnsemble) -> None:
    """Raise ``ValueError`` unless every walk stays inside the arrays and ends at a finite leaf."""
    nodes = len(e.feature)
    if any(len(getattr(e, n)) != nodes for n in _ARRAYS if n != "roots"):
        raise ValueError("arrays of nodes differ in length")
    if len(set(e.names)) != len(e.names):
        raise ValueError("a feature is named twice")
    if not np.isfinite([e.base_score, e.slope]).all():
        raise ValueError("the base score or the slope is not finite")
    if e.slope and not 0 <= e.start < len(e.names):
        raise ValueError("rows start from a feature that there is not")
    if e.roots.size and (e.roots.min() < 0 or e.roots.max() >= nodes):
        raise ValueError("a root lies outside")
    if not nodes:
        return
    if e.feature.min() < -1 or e.feature.max() >= len(e.names):
        raise ValueError("a node asks for a feature that there is not")
    own = np.arange(nodes)
    leaf = e.feature < 0
    for side in (e.left, e.right):
        if side.min() < 0 or side.max() >= nodes:
            raise ValueError("a child lies outside")
        if np.any(side[leaf] != own[leaf]) or np.any(side[~leaf] <= own[~leaf]):
            raise ValueError("a child does not lie behind its parent")
    if not np.isfinite(e.threshold).all() or not np.isfinite(e.value).all():
        raise ValueError("a number is not finite")


def ensemble_from_xgboost(
    model: dict[str, Any], *, features_version: int, names: Sequence[str], card: dict[str, Any]
) -> TreeEnsemble:
    """The ensemble of a booster's JSON (``Booster.save_raw("json")``, parsed).

    Only numerical splits and one output are taken; a ``best_iteration`` that early stopping noted
    cuts off the trees after it.
    Raises: ``ValueError`` for another kind of booster.
    """
    learner = model["learner"]
    booster = learner["gradient_booster"]
    if booster.get("name") != "gbtree":
        raise ValueError(f"booster '{booster.get('name')}' is no ensemble of trees")
    trees = booster["model"]["trees"]
    best = learner.get("attributes", {}).get("best_iteration")
    if best is not None:
        trees = trees[: int(best) + 1]
    score = learner["learner_model_param"]["base_score"]
    columns: dict[str, list[NDArray[Any]]] = {n: [] for n in _ARRAYS}
    start = 0
    for tree in trees:
        if tree.get("categories_nodes"):
            raise ValueError("a tree splits by categories")
        order = _breadth_first(tree["left_children"], tree["right_children"])
        for name, column in _node_columns(tree, order, start).items():
            columns[name].append(column)
        columns["roots"].append(np.array([start], dtype=np.int32))
        start += len(order)
    arrays: dict[str, Any] = {
        n: np.concatenate(parts).astype(_ARRAYS[n]) if parts else np.zeros(0, _ARRAYS[n])
        for n, parts in columns.items()
    }
    return TreeEnsemble(
        features_version=features_version,
        names=tuple(names),
        base_score=float(np.float32(str(score).strip("[]"))),
        card=card,
        **arrays,
    )


def _breadth_first(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Nodes that the root reaches, parents before their children."""
    order = [0]
    for node in order:
        if left[node] >= 0:
            order += [left[node], right[node]]
    return order


def _node_columns(tree: dict[str, Any], order: list[int], start: int) -> dict[str, NDArray[Any]]:
    place = {node: start + k for k, node in enumerate(order)}
    left, right = tree["left_children"], tree["right_children"]
    leaf = [left[n] < 0 for n in order]
    condition = np.array([tree["split_conditions"][n] for n in order], dtype=np.float32)
    is_leaf = np.array(leaf)
    return {
        "feature": np.array([-1 if x else tree["split_indices"][n] for n, x in zip(order, leaf)]),
        "threshold": np.where(is_leaf, np.float32(0), condition),
        "left": np.array([place[n] if x else place[left[n]] for n, x in zip(order, leaf)]),
        "right": np.array([place[n] if x else place[right[n]] for n, x in zip(order, leaf)]),
        "missing_left": np.array([bool(tree["default_left"][n]) for n in order]),
        "value": np.where(is_leaf, condition, np.float32(0)),
    }
