"""Nested inputs and outputs: trees as JSON, taken apart and put together.

A tree is one of

=============================================  ===================================================
``{"leaf": 3}``                                flat value 3
``{"tuple": [tree, …]}``, ``{"list": […]}``    a tuple, a list
``{"dict": [[key, tree], …]}``                 a dict; keys are text, integers or bools
``{"object": "module:Class",``                 a named tuple, a dataclass or a dict-like class with
``"fields": [[name, tree], …]}``               fields (``transformers`` outputs)
=============================================  ===================================================

The tree of a call's inputs is ``{"args": [tree, …], "kwargs": [[name, tree], …]}``. ``None`` is a
leaf. Leaves are numbered in the order in which the parts are written.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nestor.errors import ArtifactError, InputError

Builder = Callable[[Sequence[Any]], Any]


class Struct(dict[Any, Any]):
    """What stands for an object whose class is not loaded: fields by name, key or position."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) or (isinstance(key, int) and key not in self.keys()):
            return tuple(self.values())[key]
        return super().__getitem__(key)


def flatten(value: object) -> tuple[Any, list[Any]]:
    """The tree of ``value`` and its leaves."""
    leaves: list[Any] = []

    def visit(node: Any) -> Any:
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return _object(node, zip(node._fields, node, strict=True))
        if type(node) in (tuple, list):
            return {type(node).__name__: [visit(v) for v in node]}
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            names = [f.name for f in dataclasses.fields(node)]
            if isinstance(node, Mapping):  # of its fields such an output holds those that are set
                names = list(node)
            return _object(node, ((n, getattr(node, n)) for n in names))
        if isinstance(node, dict):
            if type(node) is not dict and type(node).__name__ != "OrderedDict":
                return _object(node, node.items())
            return {"dict": [[k, visit(v)] for k, v in node.items()]}
        leaves.append(node)
        return {"leaf": len(leaves) - 1}

    def _object(node: Any, fields: Any) -> Any:
        cls = type(node)
        path = f"{cls.__module__}:{cls.__qualname__}"
        return {"object": path, "fields": [[n, visit(v)] for n, v in fields]}

    return visit(value), leaves


def flatten_call(args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[Any, list[Any]]:
    """The input tree of a call and its leaves."""
    tree, leaves = flatten((list(args), dict(kwargs)))
    arguments, named = tree["tuple"]
    return {"args": arguments["list"], "kwargs": named["dict"]}, leaves


def check_tree(tree: Any, leaves: int, where: str) -> None:
    """Check the form of a tree and that it names each of ``leaves`` flat values.

    Raises:
        ArtifactError: malformed.
    """
    seen: set[int] = set()

    def visit(node: Any) -> None:
        match node:
            case {"leaf": int(index), **rest} if not rest and 0 <= index < leaves:
                seen.add(index)
            case {"tuple": list(items), **rest} | {"list": list(items), **rest} if not rest:
                for item in items:
                    visit(item)
            case {"dict": list(items), **rest} if not rest:
                pairs(items, (str, int))
            case {"object": str(path), "fields": list(items), **rest} if not rest and ":" in path:
                pairs(items, (str,))
            case _:
                raise ArtifactError(f"{where}: not a tree: {str(node)[:60]}")

    def pairs(items: list[Any], keys: tuple[type, ...]) -> None:
        for item in items:
            if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], keys):
                raise ArtifactError(f"{where}: not a key and a tree: {str(item)[:60]}")
            visit(item[1])

    if isinstance(tree, dict) and set(tree) == {"args", "kwargs"}:
        if not isinstance(tree["args"], list) or not isinstance(tree["kwargs"], list):
            raise ArtifactError(f"{where}: args and kwargs are not lists")
        for argument in tree["args"]:
            visit(argument)
        pairs(tree["kwargs"], (str,))
    else:
        visit(tree)
    if len(seen) != leaves:
        raise ArtifactError(f"{where}: it names {len(seen)} of {leaves} values")


def make_builder(tree: Any) -> Builder:
    """A function from flat values to the nested value that ``tree`` (checked) describes."""
    match tree:
        case {"leaf": index}:
            return lambda values: values[index]
        case {"tuple": items}:
            parts = [make_builder(i) for i in items]
            return lambda values: tuple([p(values) for p in parts])
        case {"list": items}:
            parts = [make_builder(i) for i in items]
            return lambda values: [p(values) for p in parts]
        case {"dict": items}:
            pairs = [(k, make_builder(i)) for k, i in items]
            return lambda values: {k: p(values) for k, p in pairs}
        case _:
            pairs = [(k, make_builder(i)) for k, i in tree["fields"]]
            path = tree["object"]
            return lambda values: _construct(path, {k: p(values) for k, p in pairs})


def _construct(path: str, fields: dict[str, Any]) -> Any:
    """An object of the class at ``path`` if its module is loaded, else a ``Struct``.

    Nothing is imported for it: an artifact must not pull in a library that the caller did not load.
    """
    module, _, name = path.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and _has_fields(found):
        return found(**fields)
    return Struct(fields)


def _has_fields(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or hasattr(cls, "_fields") or issubclass(cls, dict)


class CallFlattener:
    """Takes calls apart by the input tree that the model was compiled with.

    Args:
        tree: ``{"args", "kwargs"}`` (checked), or None: the arguments are the flat inputs.
        argument_names: of the positional arguments, which may then be given by name.
        none_leaves: flat inputs that must be None; such an argument may be left out.
    """

    def __init__(
        self,
        tree: Any,
        argument_names: Sequence[str] = (),
        none_leaves: frozenset[int] = frozenset(),
    ):
        self._args: list[Any] = [] if tree is None else tree["args"]
        self._kwargs: dict[str, Any] = {} if tree is None else dict(tree["kwargs"])
        self._names = list(argument_names)[: len(self._args)]
        self._none_leaves = none_leaves
        self._flat_count = -1
        plain = [a.get("leaf") for a in self._args]
        if tree is not None and not self._kwargs and plain == list(range(len(plain))):
            self._flat_count = len(plain)
        self._is_flat = tree is None
        self._leaves = _count_leaves([*self._args, *self._kwargs.values()])

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Flat inputs of a call. Raises InputError where it differs in structure."""
        if not kwargs and (self._is_flat or len(args) == self._flat_count):
            return args
        if self._is_flat:
            raise InputError(f"this model takes no named arguments; got {', '.join(kwargs)}")
        given = self._by_place(args, kwargs)
        values: list[Any] = [None] * self._leaves
        for tree, value, name in given:
            self._take(tree, value, name, values)
        return values

    def _by_place(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[tuple[Any, Any, str]]:
        rest = dict(kwargs)
        if len(args) > len(self._args):
            raise InputError(
                f"{len(args)} positional arguments, but the model was compiled with "
                f"{len(self._args)}{self._signature()}"
            )
        given = []
        for i, tree in enumerate(self._args):
            name = self._names[i] if i < len(self._names) else f"argument {i}"
            if i < len(args):
                if name in rest:
                    raise InputError(f"argument '{name}' is given twice, by place and by name")
                given.append((tree, args[i], name))
            else:
                given.append((tree, self._named(name, tree, rest), name))
        for name, tree in self._kwargs.items():
            given.append((tree, self._named(name, tree, rest), name))
        if rest:
            raise InputError(
                f"argument '{next(iter(rest))}' is not one that the model was compiled with"
                f"{self._signature()}"
            )
        return given

    def _named(self, name: str, tree: Any, rest: dict[str, Any]) -> Any:
        if name in rest:
            return rest.pop(name)
        if tree.get("leaf") in self._none_leaves:
            return None
        raise InputError(f"argument '{name}' is missing{self._signature()}")

    def _signature(self) -> str:
        names = [*self._names, *(f"{n}=…" for n in self._kwargs)]
        return f"; it takes ({', '.join(names)})" if names else ""

    def _take(self, tree: Any, value: Any, where: str, values: list[Any]) -> None:
        match tree:
            case {"leaf": index}:
                values[index] = value
            case {"tuple": items} | {"list": items}:
                if not isinstance(value, (tuple, list)) or len(value) != len(items):
                    found = f"{len(value)}" if isinstance(value, (tuple, list)) else "none"
                    raise InputError(f"{where}: a sequence of {len(items)} expected, got {found}")
                for i, item in enumerate(items):
                    self._take(item, value[i], f"{where}[{i}]", values)
            case _:
                items = tree.get("dict", tree.get("fields"))
                for key, item in items:
                    self._take(item, _field(value, key, where), f"{where}[{key!r}]", values)
                if isinstance(value, Mapping) and len(value) != len(items):
                    extra = [k for k in value if k not in {i[0] for i in items}]
                    raise InputError(f"{where}: entry {extra[0]!r} was not there at compile time")


def _field(value: Any, key: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        if key in value:
            return value[key]
    elif isinstance(key, str) and hasattr(value, key):
        return getattr(value, key)
    raise InputError(f"{where}: no entry {key!r}")


def _count_leaves(trees: Sequence[Any]) -> int:
    count = 0
    for tree in trees:
        match tree:
            case {"leaf": _}:
                count += 1
            case {"tuple": items} | {"list": items}:
                count += _count_leaves(items)
            case _:
                count += _count_leaves([i[1] for i in tree.get("dict", tree.get("fields"))])
    return count
