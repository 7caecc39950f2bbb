"""Manifests: JSON round trip, sizes, and refusal of everything malformed."""

from __future__ import annotations

import copy
import json
import random

import pytest

from nestor.errors import ArtifactError
from nestor.runtime.dims import DimExpr, Quotient, evaluate, solve
from nestor.runtime.manifest import (
    ExternCall,
    InputSpec,
    Manifest,
    Mutation,
    OutputSpec,
    SymbolBinding,
    WeightSource,
)
from tests.helpers.native import ADD, DOUBLE, ModelMaker, chain, pointwise

N = DimExpr(0, (("N", 1),))


def rich() -> Manifest:
    """A manifest with something in every field."""
    m = ModelMaker("rich")
    x = m.slot("x", (N, 4), "input")
    w = m.slot("w", (4,), "parameter", physical=(1, 4))
    s = m.slot("s", (4,), "state")
    t = m.slot("t", (DimExpr(1, (("N", 2), ("N*S", 1)), (Quotient(N, 16, 16),)), 4), "temp")
    v = m.slot("v", (N, 4), "temp", alias_of=t)
    y = m.slot("y", (N, 4), "output", permutation=(1, 0))
    n = m.slot("n", (4,), "temp")
    m.kernel(pointwise(DOUBLE, "symbol"), (x, t), (0,), name="k", origin="relu at m.py:3")
    m.calls.append(
        ExternCall(
            operator="aten.sort", arguments=[{"tensor": "x"}, 1, None], inputs=(x,), outputs=(v,)
        )
    )
    m.kernel(pointwise(ADD, "symbol", 2), (v, w, y), (0,))
    m.kernel(pointwise(DOUBLE, "4"), (s, n))
    return m.manifest(
        [
            y,
            OutputSpec(kind="integer", value=N),
            OutputSpec(kind="constant", constant={"a": [1, None]}),
            OutputSpec(kind="input", input=1),
            OutputSpec(slot=y, shape=(4,), strides=(0,), offset=3),
        ],
        inputs=(
            InputSpec(name="x", slot=x),
            InputSpec(name="flag", kind="constant", constant=True),
            InputSpec(name="S", kind="integer", value=DimExpr(0, (("S", 1),))),
        ),
        symbols=(
            SymbolBinding(name="N", input=0, dimension=0, lower=1, upper=9),
            SymbolBinding(name="S", input=2, dimension=None),
        ),
        weights=(
            WeightSource(slot=w, key="w.packed", parameters=("lin.weight",)),
            WeightSource(slot=s, key="s", how="state"),
        ),
        mutations=(Mutation(source=n, target=s),),
        statistics={"kernels": 3, "seconds": {"llvm": 0.25}},
        argument_names=("x", "flag", "size"),
    )


def test_round_trip_through_text():
    manifest = rich()
    text = json.dumps(manifest.to_json())
    assert Manifest.from_json(json.loads(text)) == manifest
    assert manifest.to_json()["format_version"] == 1


def test_sizes():
    size = DimExpr(1, (("N", 2), ("N*S", 1)), (Quotient(N, 16, 16), Quotient(N, 5, 1, True)))
    assert evaluate(size, {"N": 33, "S": 3}) == 1 + 66 + 99 + 32 + 3
    assert str(DimExpr(1, (("N", 2),))) == "2*N + 1"
    assert solve(DimExpr(1, (("N", 2),)), "N", 7) == 3
    assert solve(DimExpr(1, (("N", 2),)), "N", 8) is None


def damage(path: str, value: object) -> dict:
    data = json.loads(json.dumps(rich().to_json()))
    *steps, last = path.split(".")
    place = data
    for step in steps:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if value is KeyError:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format_version", 99, "format version 99, this Nestor reads 1"),
        ("format_version", KeyError, "format version None"),
        ("name", KeyError, "manifest: field 'name' is missing"),
        ("surprise", 1, "unknown field 'surprise'"),
        ("slots.0.dtype", "f31", "unknown dtype 'f31'"),
        ("slots.0.dtype", 5, r"manifest\.slots\[0\]\.dtype: expected text, found 5"),
        ("slots.0.role", "guest", "found 'guest'"),
        ("slots.0.shape", "ab", "expected a list"),
        ("slots.0.shape.0", -3, "a negative size"),
        ("slots.0.shape.0", True, "not a size"),
        ("slots.0.shape.0", {"const": 1, "terms": {"Q": 1}}, "names no known symbol"),
        ("slots.5.permutation", [0, 0], "not a permutation"),
        ("slots.0.physical", [4, {"const": 0, "terms": {"N": 1}}], "a layout of its own"),
        ("slots.4.alias_of", 77, "a slot that does not exist"),
        ("slots.3.alias_of", 4, "aliases form a circle"),
        ("weights.0.slot", 3, "without weights"),
        ("calls.0.function", 17, r"calls\[0\]: no such function"),
        ("calls.0.tensors.0", -1, r"calls\[0\]: no such slot"),
        ("calls.0.symbols.0", 2, r"calls\[0\]: no such symbol"),
        ("calls.0.kind", "prayer", "unknown value 'prayer'"),
        ("calls.1.inputs.0", 900, r"calls\[1\]: no such slot"),
        ("segments.0.last", 2, "do not cover the kernels"),
        ("inputs.0.slot", 1, "do not correspond"),
        ("inputs.1.kind", "tensor", "do not correspond"),
        ("symbols.0.dimension", 2, r"symbols \(N\): no such dimension"),
        ("symbols.0.dimension", 1, "cannot be read from the size 4"),
        ("outputs.0.slot", 400, r"outputs\[0\]: no such slot"),
        ("outputs.4.strides", KeyError, "shape and strides come together"),
        ("outputs.3.input", 9, "no such input"),
        ("mutations.0.target", 3, "the target is a temp"),
        ("mutations.0.source", 0, "different dtype, shape or layout"),
        ("statistics", [], "expected an object"),
    ],
)
def test_malformed_fields_are_located(path, value, message):
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_json(damage(path, value))


@pytest.mark.parametrize("data", [None, [], 3, "text", {}])
def test_other_json_is_refused(data):
    with pytest.raises(ArtifactError):
        Manifest.from_json(data)


def test_random_damage_gives_only_our_error():
    base = json.loads(json.dumps(rich().to_json()))
    source = random.Random(5)
    values = [None, -1, 10**9, "x", [], {}, True, 1.5, [1, 2], {"kind": "kernel"}]
    refused = 0
    for _ in range(1500):
        data = copy.deepcopy(base)
        place = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = source.choice(keys)
            if isinstance(place[key], (dict, list)) and place[key] and source.random() < 0.8:
                place = place[key]
                continue
            place[key] = source.choice(values)
            break
        try:
            Manifest.from_json(data)
        except ArtifactError:
            refused += 1
    assert refused > 500


def test_the_helper_makes_what_it_says():
    manifest, objects = chain()
    assert set(manifest.object_digests) == set(objects)
