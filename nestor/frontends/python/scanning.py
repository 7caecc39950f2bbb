"""Questions about names, answered on the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Sequence


def assigned_names(nodes: Sequence[ast.AST]) -> set[str]:
    """Names that the statements store to, loop indices excepted."""
    loops = {id(n.target) for node in nodes for n in ast.walk(node) if isinstance(n, ast.For)}
    return {
        n.id
        for node in nodes
        for n in ast.walk(node)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in loops
    }


def mentions(nodes: Sequence[ast.AST], name: str) -> int:
    """How often ``name`` occurs."""
    return sum(isinstance(n, ast.Name) and n.id == name for node in nodes for n in ast.walk(node))


def assigns_first(block: Sequence[ast.stmt], name: str) -> bool:
    """Whether the first statement that mentions ``name`` assigns to it what does not mention it."""
    for statement in block:
        if not mentions([statement], name):
            continue
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=value):
                return target == name and not mentions([value], name)
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                return target == name and not mentions([value], name)
            case _:
                return False
    return False
