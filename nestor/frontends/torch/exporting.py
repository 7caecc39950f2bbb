"""Call ``torch.export`` and turn its failures into errors that name the user's line."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import operator
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nestor.errors import ExportError, InputError, UserError
from nestor.frontends.torch import dtypes
from nestor.frontends.torch.origins import whole_stack_traces
from nestor.frontends.torch.recurrent_ops import keep_recurrences
from nestor.frontends.torch.registry import RULES

_TORCH = str(Path(torch.__file__).parent) + os.sep
"""With the separator: a folder beside it may have a name that starts with ``torch``."""
_IGNORED = (
    "aten._assert_tensor_metadata",
    "aten._assert_scalar",
    "aten._assert_async",
    "aten.sym_constrain_range",
    "aten.sym_constrain_range_for_size",
    "aten._functional_assert",
)


class _Function(nn.Module):
    """A callable as a module, for ``torch.export``."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function
        if inspect.isfunction(function) or inspect.ismethod(function):
            # The function itself: export matches arguments by its signature and code.
            self.forward = function  # type: ignore[method-assign]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call what has no signature to be had: builtins, operators, partial functions."""
        return self.function(*args, **kwargs)


def as_module(model: Any) -> nn.Module:
    """The model itself, or a module around a function.

    Raises: InputError when it is not callable.
    """
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise InputError(
            f"the model is a {type(model).__name__}; "
            " give an nn.Module, an ExportedProgram or a function"
        )
    owner = getattr(model, "__self__", None)
    if isinstance(owner, nn.Module) and getattr(model, "__name__", "") == "forward":
        return owner
    return _Function(model)


def check_example_inputs(model: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Check what can be known before tracing.

    Raises: InputError for a call that does not fit the signature, or tensors that cannot be used.
    """
    if not isinstance(args, tuple):
        raise InputError(
            f"example inputs are a {type(args).__name__}, not a tuple; for one input write (x,)"
        )
    module = as_module(model)
    target = module.function if isinstance(module, _Function) else module.forward
    try:
        inspect.signature(target).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the example inputs do not fit {_name_of(model)}: {error}") from None
    except ValueError:  # no signature to be had
        pass
    for path, leaf in flat_paths(args, dict(kwargs)):
        if isinstance(leaf, torch.Tensor):
            check_tensor(path, leaf)


def check_tensor(path: str, tensor: torch.Tensor) -> None:
    """Raise InputError for a tensor that no compiled model takes."""
    if tensor.device.type != "cpu":
        raise InputError(f"{path} is on {tensor.device}; move it to the CPU with .cpu()")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{path} is sparse or quantised; make it dense with .to_dense()")
    if not dtypes.is_supported(tensor.dtype):
        raise InputError(f"{path} has type {tensor.dtype}, which is not supported; convert it")


def flat_paths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """Every leaf of a call with its path, in flattened order."""
    pairs, _ = pytree.tree_flatten_with_path((args, kwargs))
    out = []
    for path, leaf in pairs:
        root = "args" if str(path[0]) == "[0]" else "kwargs"
        out.append((root + "".join(str(k) for k in path[1:]), leaf))
    return out


def _name_of(model: Any) -> str:
    if isinstance(model, nn.Module):
        return f"{type(model).__name__}.forward"
    return getattr(model, "__name__", type(model).__name__)


def export_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """``torch.export`` with recurrences kept whole.

    Raises: ExportError naming the line in the model, InputError for a wrong ``dynamic_shapes``.
    """
    args, kwargs = _distinct((args, kwargs))
    with torch.no_grad(), keep_recurrences(), whole_stack_traces("export_model"), _quiet():
        try:
            return torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
        except (KeyboardInterrupt, MemoryError, UserError):
            raise
        except Exception as error:
            raise _explain(error, model) from error


def _distinct(values: Any) -> Any:
    """``values`` where no two tensors are one object: export would take such inputs for one, and
    read the last of them in place of all."""
    seen: set[int] = set()

    def visit(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        repeated = id(value) in seen
        seen.add(id(value))
        return value.detach().clone() if repeated else value

    return pytree.tree_map(visit, values)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back PyTorch's warnings and logs, and what it prints when an export fails.

    What the model itself writes to stderr while it is traced is passed on.
    """
    thread = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = (logging.getLogger(n) for n in list(logging.root.manager.loggerDict))
    handlers = [h for g in loggers if g.name.partition(".")[0] == "torch" for h in g.handlers]
    captured = io.StringIO()
    for handler in handlers:
        handler.addFilter(elsewhere)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(captured):
            warnings.simplefilter("ignore")
            yield
        sys.stderr.write(captured.getvalue())
    finally:
        for handler in handlers:
            handler.removeFilter(elsewhere)


def _explain(error: Exception, model: nn.Module) -> Exception:
    text = _first_paragraph(str(error)) or type(error).__name__
    frame = _user_frame(error)
    where = f"\n  at {frame.filename}:{frame.lineno}: {(frame.line or '').strip()}" if frame else ""
    name = type(model).__name__
    if _about_dynamic_shapes(str(error)):
        return InputError(f"dynamic_shapes does not fit {name}: {text}{where}")
    advice = "rewrite this line without it, or compile the parts of the model around it"
    lowered = str(error).lower()
    if "data-dependent" in lowered or "guard" in lowered or "unbacked" in lowered:
        text = f"a condition or a size depends on a tensor's value ({text})"
        advice = (
            "control flow must not depend on tensor values: use torch.where or a mask instead of"
            " if, .item() or boolean indexing"
        )
    return ExportError(f"{name} cannot be exported: {text}{where}\n  fix: {advice}")


def _about_dynamic_shapes(text: str) -> bool:
    return "Constraints violated" in text or "`dynamic_shapes`" in text


def _first_paragraph(text: str) -> str:
    lines = []
    for line in text.strip().splitlines():
        if not line.strip():
            break
        lines.append(line.strip())
    return " ".join(lines)[:500]


def _user_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of the model's code that the failure went through."""
    found = None
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames = traceback.extract_tb(cause.__traceback__)
        entered = False
        for frame in frames:
            if frame.filename.startswith(_TORCH):
                entered = True
            elif entered and not frame.filename.startswith("<"):
                found = frame
        cause = cause.__cause__ or cause.__context__
    return found


def decompose(
    exported: torch.export.ExportedProgram, refused: frozenset[str] = frozenset()
) -> torch.export.ExportedProgram:
    """Functionalise and decompose everything but the operators that have a lowering rule.

    A graph of such operators alone that overwrites nothing stays as it is, which saves tracing it a
    second time.

    Args: refused: operators whose rule does not cover a call of them here.
    """
    if not refused and all(_is_ready(n) for n in exported.graph.nodes):
        return exported
    table = torch.export.default_decompositions()
    for overload in list(table):
        if str(overload) in RULES and str(overload) not in refused:
            del table[overload]
    with torch.no_grad(), keep_recurrences(), _quiet():
        decomposed: torch.export.ExportedProgram = exported.run_decompositions(table)
        return decomposed


def decomposable(operators: Iterable[str]) -> frozenset[str]:
    """Those operators that PyTorch can express by simpler ones."""
    wanted = set(operators)
    if not wanted:
        return frozenset()
    return frozenset(str(o) for o in torch.export.default_decompositions() if str(o) in wanted)


def is_ignored(target: str) -> bool:
    """Checks of metadata that the import itself makes good for."""
    return target.rpartition(".")[0] in _IGNORED


def _is_ready(node: torch.fx.Node) -> bool:
    """Whether a node can be lowered as it stands in the exported graph."""
    if node.op != "call_function" or isinstance(node.meta.get("val"), torch.SymInt):
        return True
    target = str(node.target)
    if node.target is operator.getitem or is_ignored(target):
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable or target not in RULES:
        return False
    if target == "aten.batch_norm.default":  # overwrites its statistics without saying so
        return not node.args[5]
    if target == "aten.instance_norm.default":
        return node.args[3] is None
    return True
