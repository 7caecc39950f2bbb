"""Ensembles: walks as written down, files that are checked before use."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nestor.cost_model.trees import (
    TreeEnsemble,
    average_ensembles,
    ensemble_from_bytes,
    load_ensemble,
)
from nestor.errors import UserError


def stump_and_leaf() -> TreeEnsemble:
    """``base + (b < 0.5 ? (a < 2 ? 1 : 2) : 3) + 10``."""
    return TreeEnsemble(
        features_version=1,
        names=("a", "b"),
        base_score=0.25,
        roots=np.array([0, 5], np.int32),
        feature=np.array([1, 0, -1, -1, -1, -1], np.int16),
        threshold=np.array([0.5, 2, 0, 0, 0, 0], np.float32),
        left=np.array([1, 3, 2, 3, 4, 5], np.int32),
        right=np.array([2, 4, 2, 3, 4, 5], np.int32),
        missing_left=np.array([False, True, False, False, False, False]),
        value=np.array([0, 0, 3, 1, 2, 10], np.float32),
        card={"made": "2026-01-01"},
    )


def test_rows_reach_their_leaves() -> None:
    model = stump_and_leaf()
    assert model.depth == 2
    rows = np.array([[1, 0], [2, 0], [3, 0.5], [np.nan, 0], [1, np.nan]], np.float32)
    assert model.predict(rows).tolist() == [11.25, 12.25, 13.25, 11.25, 13.25]


def test_many_rows_are_as_each_alone() -> None:
    model = stump_and_leaf()
    rows = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    alone = np.concatenate([model.predict(r[None]) for r in rows])
    np.testing.assert_array_equal(model.predict(rows), alone)
    assert model.predict(rows[:0]).shape == (0,)


def test_no_trees_give_the_base_score() -> None:
    empty = {n: getattr(stump_and_leaf(), n)[:0] for n in (
        "roots", "feature", "threshold", "left", "right", "missing_left", "value"
    )}  # fmt: skip
    assert replace(stump_and_leaf(), **empty).predict(np.zeros((2, 2), np.float32)).tolist() == [
        0.25,
        0.25,
    ]


def test_rows_start_from_a_feature() -> None:
    model = replace(stump_and_leaf(), start=1, slope=-2.0)
    rows = np.array([[1, 0], [3, 0.5], [3, 8]], np.float32)
    assert model.predict(rows).tolist() == [11.25, 12.25, -2.75]
    back = ensemble_from_bytes(model.to_bytes())
    assert (back.start, back.slope) == (1, -2.0)
    for start, slope in ((2, 1.0), (-1, 1.0), (0, float("nan"))):
        with pytest.raises(ValueError):
            replace(model, start=start, slope=slope)


def test_the_mean_of_several() -> None:
    first = stump_and_leaf()
    second = replace(first, base_score=1.25, slope=2.0, value=first.value * 3)
    mean = average_ensembles([first, second])
    assert len(mean.roots) == 4
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    wanted = (first.predict(rows) + second.predict(rows)) / 2
    np.testing.assert_allclose(mean.predict(rows), wanted, rtol=1e-6)


def test_files_come_back_equal_and_are_reproducible(tmp_path: Path) -> None:
    model = stump_and_leaf()
    path = tmp_path / "model.npz"
    model.save(path)
    back = load_ensemble(path)
    assert (back.names, back.card, back.base_score) == (model.names, model.card, model.base_score)
    rows = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    np.testing.assert_array_equal(back.predict(rows), model.predict(rows))
    assert back.to_bytes() == model.to_bytes() == path.read_bytes()


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match="takes"):
        stump_and_leaf().predict(np.zeros((3, 5), np.float32))


def set_at(name: str, position: int, value: float) -> TreeEnsemble:
    model = stump_and_leaf()
    changed = getattr(model, name).copy()
    changed[position] = value
    return replace(model, **{name: changed})


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [
        ("roots", 0, 6),
        ("roots", 1, -1),
        ("feature", 0, 2),
        ("feature", 0, -2),
        ("left", 1, 0),  # a circle
        ("left", 0, 0),
        ("right", 1, 99),
        ("right", 1, -1),
        ("left", 2, 3),  # a leaf with a child
        ("threshold", 0, np.nan),
        ("value", 5, np.inf),
    ],
)
def test_bad_tables_are_refused(name: str, position: int, value: float) -> None:
    with pytest.raises(ValueError):
        set_at(name, position, value)


def repacked(data: bytes, change: str) -> bytes:
    """The archive with one entry changed, dropped or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            if change == "drop" and entry == "left.npy":
                continue
            if change == "pickle" and entry == "value.npy":
                buffer = io.BytesIO()
                np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
                content = buffer.getvalue()
            if change == "wide" and entry == "value.npy":
                buffer = io.BytesIO()
                np.save(buffer, np.zeros(6))
                content = buffer.getvalue()
            if change == "head" and entry == "head.npy":
                content = content.replace(b'"format": 1', b'"format": 9')
            new.writestr(entry, content)
        if change == "add":
            new.writestr("more.npy", b"")
    return out.getvalue()


@pytest.mark.parametrize("change", ["drop", "pickle", "wide", "head", "add"])
def test_other_archives_are_refused(change: str) -> None:
    with pytest.raises(UserError, match="not a valid file of trees"):
        ensemble_from_bytes(repacked(stump_and_leaf().to_bytes(), change))


def test_any_damaged_byte_is_an_error_or_harmless() -> None:
    """No flipped byte ends in another exception, or in a model that cannot be used."""
    data = stump_and_leaf().to_bytes()
    refused = 0
    for position in range(0, len(data), 3):
        broken = bytearray(data)
        broken[position] ^= 0x5A
        try:
            model = ensemble_from_bytes(bytes(broken))
        except UserError:
            refused += 1
        else:
            model.predict(np.zeros((2, len(model.names)), np.float32))
    assert refused > len(data) / 3 / 2


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_ensemble(tmp_path / "none.npz")
