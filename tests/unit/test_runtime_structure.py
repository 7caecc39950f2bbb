"""Nested values: taken apart and put together again, with and without their classes."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict, namedtuple

import pytest

from nestor.errors import ArtifactError
from nestor.runtime.structure import Struct, check_tree, flatten, flatten_call, make_builder

Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Box:
    value: object
    other: object = None


class Outer:
    @dataclasses.dataclass
    class Inner:
        value: object


@pytest.mark.parametrize(
    "value",
    [
        3, None, (), [], {}, (1, [2, (3,)], {"a": 4, "b": (None,)}), Pair(1, (2, 3)), Box(1, [2]),
        {3: 1, True: 2, "x": Outer.Inner(5)}, OrderedDict(b=1, a=2),
    ],
)  # fmt: skip
def test_round_trip(value):
    tree, leaves = flatten(value)
    tree = json.loads(json.dumps(tree))
    check_tree(tree, len(leaves), "tree")
    back = make_builder(tree)(leaves)
    assert back == value
    if not isinstance(value, OrderedDict):
        assert type(back) is type(value)


def test_outputs_of_transformers():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    value = outputs.BaseModelOutput(last_hidden_state=1, attentions=(2, 3))
    tree, leaves = flatten(value)
    assert leaves == [1, 2, 3]
    back = make_builder(json.loads(json.dumps(tree)))(leaves)
    assert type(back) is outputs.BaseModelOutput
    assert back.attentions == (2, 3)
    assert back[0] == 1


def test_class_that_is_not_loaded():
    tree = {"object": "absent.module:Thing", "fields": [["a", {"leaf": 1}], ["b", {"leaf": 0}]]}
    back = make_builder(tree)([10, 20])
    assert isinstance(back, Struct)
    assert (back.a, back["b"], back[0], back[0:2]) == (20, 10, 20, (20, 10))
    with pytest.raises(AttributeError):
        back.c  # noqa: B018


def test_only_classes_with_fields_are_called():
    for path in ("os:system", "builtins:eval", "pathlib:Path"):
        tree = {"object": path, "fields": [["a", {"leaf": 0}]]}
        assert isinstance(make_builder(tree)(["echo no"]), Struct)


def test_call_tree():
    tree, leaves = flatten_call((1, (2, 3)), {"flag": 4})
    assert leaves == [1, 2, 3, 4]
    assert tree["args"] == [{"leaf": 0}, {"tuple": [{"leaf": 1}, {"leaf": 2}]}]
    check_tree(tree, 4, "tree")


@pytest.mark.parametrize(
    "tree",
    [
        None, 3, {}, {"leaf": 5}, {"leaf": "0"}, {"tuple": 3}, {"tuple": [{"leaf": 0}], "x": 1},
        {"dict": [["a"]]}, {"dict": [[None, {"leaf": 0}]]}, {"object": "nocolon", "fields": []},
        {"tuple": []}, {"args": 3, "kwargs": []}, {"args": [], "kwargs": [[1, {"leaf": 0}]]},
    ],
)  # fmt: skip
def test_malformed_trees(tree):
    with pytest.raises(ArtifactError, match="tree"):
        check_tree(tree, 1, "tree")
