"""What stands for a model on the command line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestor.errors import NestorError, UserError

_FORMS = "FILE.pt2, FILE.py:function or package.module:function"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model with what it takes to compile it.

    Attributes:
        name: for reports.
        model: a ``torch.nn.Module``.
        inputs: example inputs.
        dynamic_shapes: as ``torch.export`` takes them, or None.
    """

    name: str
    model: Any
    inputs: tuple[Any, ...]
    dynamic_shapes: Any = None


def is_artifact(spec: str) -> bool:
    """Whether ``spec`` names an artifact, by its ending."""
    return spec.endswith(".nst")


def load_model(spec: str) -> NamedModel:
    """The model that ``spec`` stands for.

    Raises: UserError: no such file, module or function, or it does not return a model.
    """
    if spec.endswith(".pt2"):
        return _load_exported(spec)
    maker = load_object(spec, "a model", _FORMS)
    with _users_code(spec):
        made = maker()
    return _check_made(spec, spec.rpartition(":")[2], made)


def load_object(spec: str, what: str, forms: str) -> Any:
    """What ``PLACE:function`` names: something callable in a file or a module.

    Args: what, forms: for the message, e.g. ``a model`` and the forms that name one.
    Raises: UserError: not of that form, or there is no such file, module or function.
    """
    place, colon, function = spec.rpartition(":")
    if not colon or not place or not function:
        raise UserError(f"{spec!r} is not {what}: give {forms}")
    return _find_function(spec, place, function)


def load_example(spec: str, files: Sequence[str] = ()) -> tuple[Any, tuple[Any, ...]]:
    """Model and inputs of ``spec`` for a peer's process; inputs from ``files`` if there are any."""
    named = load_model(spec)
    model = named.model.module() if spec.endswith(".pt2") else named.model
    if not files:
        return model, named.inputs
    import torch

    from nestor.cli_inputs import read_inputs

    return model, tuple(torch.from_numpy(a) for a in read_inputs(files))


@contextlib.contextmanager
def _users_code(what: str) -> Iterator[None]:
    """Run code that is not ours: whatever it raises is told with the line that raised it."""
    try:
        yield
    except NestorError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(_missing(what, error)) from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{what} failed: {type(error).__name__}: {error}\n  at {place.filename}:{place.lineno}"
        ) from error


def _missing(what: str, error: ModuleNotFoundError) -> str:
    """What to do about a module that is not there."""
    if error.name == "torch":
        return (
            f"{what} needs PyTorch, which is not installed here\n"
            "  fix: pip install torch, or run an artifact (FILE.nst), which needs none"
        )
    return f"{what} needs a module that is not installed: {error.name}"


def _load_exported(spec: str) -> NamedModel:
    """A model from a file that ``torch.export.save`` wrote."""
    if not Path(spec).is_file():
        raise UserError(f"no file {spec!r}")
    with _users_code(spec):
        import torch
    try:
        program = torch.export.load(spec)
    except Exception as error:
        raise UserError(
            f"{spec!r} is not a program that torch.export.save wrote: {error}"
        ) from error
    arguments, keywords = program.example_inputs or ((), {})
    if keywords:
        raise UserError(
            f"{spec!r} takes keywords ({', '.join(keywords)}); export it with positions"
        )
    return NamedModel(name=Path(spec).stem, model=program, inputs=tuple(arguments))


def _find_function(spec: str, place: str, function: str) -> Any:
    """The function ``function`` of the file or module ``place``."""
    if place.endswith(".py"):
        module = _import_file(Path(place))
    else:
        module = _import_module(spec, place)
    found = getattr(module, function, None)
    if not callable(found):
        import difflib

        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = difflib.get_close_matches(function, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{place} has no function {function!r}{hint}")
    return found


def _import_module(spec: str, name: str) -> Any:
    """Import ``name``; modules in the current folder are found."""
    _make_importable(Path.cwd())
    with _users_code(spec):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name + ".").startswith(error.name + "."):
                raise UserError(f"no module {error.name!r}, in {spec!r}") from error
            raise


def _import_file(file: Path) -> Any:
    """Run a Python file as a module; what lies beside it can be imported."""
    if not file.is_file():
        raise UserError(f"no file {str(file)!r}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    _make_importable(file.resolve().parent)
    with _users_code(str(file)):
        spec.loader.exec_module(module)
    return module


def _make_importable(folder: Path) -> None:
    """Put ``folder`` on the module search path, for good: models import late."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _check_made(spec: str, function: str, made: Any) -> NamedModel:
    """The model that a function returned, or what is wrong with it."""
    wanted = "(model, example_inputs) or (model, example_inputs, dynamic_shapes)"
    if not isinstance(made, Sequence) or len(made) not in (2, 3):
        raise UserError(f"{spec} returned {type(made).__name__}, not {wanted}")
    model, inputs, *rest = made
    if not callable(model):
        raise UserError(f"{spec} returned a {type(model).__name__} as model, not {wanted}")
    if not isinstance(inputs, (tuple, list)):
        inputs = (inputs,)
    return NamedModel(
        name=function, model=model, inputs=tuple(inputs), dynamic_shapes=rest[0] if rest else None
    )
