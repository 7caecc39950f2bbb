"""Structures of arguments and results as JSON.

A node is a dictionary with a ``type``:

* ``tensor``: ``index`` into the flat list of tensors; ``const``: ``value`` (int, float, bool, str);
  ``none``.
* ``tuple``, ``list``: ``items``. ``dict``: ``keys``, ``items``, ``class`` (import path, for
  subclasses such as ``OrderedDict``). ``namedtuple``: ``class``, ``fields``, ``items``.
* ``object``: ``class``, ``fields``, ``items``: a mapping-like record (``ModelOutput``) that is
  built by keyword. ``opaque``: ``class``, ``items``: another registered pytree node.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

Tree = dict[str, Any]


def describe_tree(spec: Any, leaves: Sequence[Tree]) -> Tree:
    """A JSON-able description of a ``torch.utils._pytree.TreeSpec`` with ``leaves`` filled in."""
    rest = iter(leaves)
    tree = _describe(spec, rest)
    if next(rest, None) is not None:
        raise ValueError("more leaves than the tree has places")
    return tree


def _describe(spec: Any, leaves: Iterator[Tree]) -> Tree:
    if spec.type is None:
        return next(leaves)
    items = [_describe(child, leaves) for child in _children(spec)]
    kind, context = spec.type, spec.context
    if kind is collections.namedtuple:  # PyTorch's spec has the class in its context
        kind = context
    if kind is tuple:
        return {"type": "tuple", "items": items}
    if kind is list:
        return {"type": "list", "items": items}
    if kind is dict:
        return {"type": "dict", "class": "", "keys": list(context), "items": items}
    if issubclass(kind, dict) and kind in (collections.OrderedDict, collections.defaultdict):
        keys = context[1] if kind is collections.defaultdict else context
        return {"type": "dict", "class": import_path(kind), "keys": list(keys), "items": items}
    fields = getattr(kind, "_fields", None)
    if fields is not None:
        named = {"class": import_path(kind), "fields": list(fields)}
        return {"type": "namedtuple", **named, "items": items}
    names = _field_names(context, len(items))
    if names is not None:
        return {"type": "object", "class": import_path(kind), "fields": names, "items": items}
    return {"type": "opaque", "class": import_path(kind), "items": items}


def _children(spec: Any) -> Sequence[Any]:
    children = getattr(spec, "children", None)
    if callable(children):
        children = children()
    if children is None:
        children = spec.children_specs
    found: Sequence[Any] = children
    return found


def _field_names(context: Any, count: int) -> list[str] | None:
    """Names of an object's fields, if its pytree context lists them."""
    for candidate in (context, *(context if isinstance(context, tuple | list) else ())):
        if isinstance(candidate, tuple | list) and len(candidate) == count:
            if all(isinstance(n, str) for n in candidate):
                return list(candidate)
    return None


def import_path(kind: type) -> str:
    """``module:qualified.name`` of a class."""
    return f"{kind.__module__}:{kind.__qualname__}"


def tensor_leaf(index: int) -> Tree:
    """A leaf that is a tensor."""
    return {"type": "tensor", "index": index}


def constant_leaf(value: Any) -> Tree:
    """A leaf that is not a tensor.

    Raises: TypeError for values that JSON cannot hold exactly.
    """
    if value is None:
        return {"type": "none"}
    if isinstance(value, bool | int | float | str):
        return {"type": "const", "value": value}
    raise TypeError(f"{type(value).__name__} {value!r}")
