"""Run an imported model through the reference interpreter, and compare it with eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from nestor.frontends.torch import ImportedModel, OutputSpec, import_model, run_extern
from nestor.ir.interpreter import infer_symbols, run_program
from nestor.ir.program import Extern
from nestor.ir.verifier import verify_program

NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def to_numpy(t: torch.Tensor) -> np.ndarray:
    """As the interpreter holds it: floats that NumPy does not have in float32."""
    t = t.detach().contiguous()
    return (t.float() if t.is_floating_point() and t.dtype not in NUMPY_FLOATS else t).numpy()


def interpret(imported: ImportedModel, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
    """Call the imported Program as the model would be called; results as torch tensors."""
    return interpret_all(imported, *args, **kwargs)[0]


def interpret_all(
    imported: ImportedModel, *args: Any, **kwargs: Any
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Results, and the new value of everything that the model overwrites, by its name."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    given = {s.name: to_numpy(t) for s, t in zip(imported.inputs, tensors, strict=True)}
    symbols = infer_symbols(
        imported.program, given | {n: to_numpy(t) for n, t in imported.weights.items()}
    )
    given |= {n: to_numpy(t) for n, t in imported.weights.items()}

    def extern(statement: Extern, arrays: dict[str, np.ndarray]) -> None:
        inputs = {n: torch.from_numpy(arrays[n].copy()) for n in statement.inputs}
        for name, result in zip(statement.outputs, run_extern(statement, inputs, symbols)):
            arrays[name][...] = result.numpy()

    results = run_program(imported.program, given, symbols, run_extern=extern)
    results = given | results

    def finish(spec: OutputSpec) -> torch.Tensor:
        array = torch.from_numpy(np.ascontiguousarray(results[spec.tensor])).to(spec.dtype)
        done: torch.Tensor = spec.finish(array, symbols)
        return done

    mutated = {m.target: finish(m.value) for m in imported.mutated}
    return [finish(spec) for spec in imported.outputs], mutated


def check_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    externs: int = 0,
    dynamic_shapes: Any = None,
    others: list[tuple[Any, ...]] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> ImportedModel:
    """Import, verify, interpret, compare every tensor output with eager.

    Args: others: further inputs for the same import (other sizes of dynamic dimensions).
    """
    kwargs = kwargs or {}
    if rtol is not None:
        atol = 1e-5 if atol is None else atol
    imported = import_model(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    verify_program(imported.program)
    found_externs = [e.operator for e in imported.externs()]
    assert len(found_externs) == externs, found_externs
    for call in [args, *(others or [])]:
        copies = pytree.tree_map(
            lambda x: x.clone() if isinstance(x, torch.Tensor) else x, (call, kwargs)
        )
        found, mutated = interpret_all(imported, *call, **kwargs)
        with torch.no_grad():
            wanted = pytree.tree_leaves(model(*copies[0], **copies[1]))
        wanted = [t for t in wanted if isinstance(t, torch.Tensor)]
        assert len(found) == len(wanted)
        for got, want in zip(found, wanted):
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)
        buffers = dict(model.named_buffers()) if isinstance(model, torch.nn.Module) else {}
        for target, value in mutated.items():
            if target in buffers:
                torch.testing.assert_close(value, buffers[target], rtol=rtol, atol=atol)
    return imported
