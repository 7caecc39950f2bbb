"""The reference interpreter of Programs: the definition of what a Program means.

Values are NumPy arrays with *logical* shapes; layouts are ignored. A tensor of a type that NumPy
lacks is a float32 array whose values the type has (``narrow_floats``); all other types are NumPy's
own. Temporaries and outputs start as garbage (NaN, bytes 0xAB), so a read of a cell
that nothing wrote shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Union

import numpy as np

from nestor.errors import InputError, IRError, Unsupported
from nestor.ir import numeric
from nestor.ir.affine import Affine, affine
from nestor.ir.exact import ExactRunner
from nestor.ir.instances import Plan
from nestor.ir.narrow_floats import MEMORY, round_to
from nestor.ir.nest_interpreter import run_nest
from nestor.ir.numeric import numpy_dtype
from nestor.ir.program import AnyStatement, Extern, Program, Tensor
from nestor.ir.vectorised import VectorRunner, reads_own_target

__all__ = ["infer_symbols", "run_nest", "run_program"]

READ_ROLES = ("input", "inout", "parameter", "constant", "state")
RESULT_ROLES = ("output", "inout", "state")

RunExtern = Callable[[Extern, dict[str, np.ndarray]], None]
"""Runs an Extern: reads and overwrites arrays of the dictionary in place."""


def run_program(
    program: Program,
    inputs: Mapping[str, np.ndarray],
    symbols: Mapping[str, int] | None = None,
    *,
    exact: bool = False,
    keep_temps: bool = False,
    run_extern: RunExtern | None = None,
) -> dict[str, np.ndarray]:
    """Run ``program`` and return its outputs, inouts and states by name.

    Args:
        inputs: every input, inout, parameter, constant and state tensor by name (aliases of another
            tensor excepted). Nothing passed in is modified.
        symbols: values of shape parameters; those missing are read from the inputs' shapes.
        exact: evaluate instance by instance in lexicographic order, without any reassociation
            (slow); otherwise vectorised over unordered indices.
        keep_temps: return temporaries too.
        run_extern: executes ``Extern`` statements.
    Raises: ``InputError`` if inputs do not fit, ``IndexOutOfRange`` for a gather or scatter
        outside its tensor, ``Unsupported`` for an ``Extern`` without ``run_extern``, ``IRError``
        for IR that reads or writes outside a tensor.
    """
    values = infer_symbols(program, inputs, symbols)
    arrays, bases = _allocate(program, inputs, values)
    runners: dict[str, Runner] = {}
    for statement in program.statements:
        if isinstance(statement, Extern):
            runners[statement.name] = _ExternRunner(statement, arrays, run_extern)
            continue
        plan = Plan.of(statement)
        serial = statement.scatter == "last" and reads_own_target(plan, bases)
        kind = ExactRunner if exact or serial else VectorRunner
        runners[statement.name] = kind(plan, arrays)
    with numeric.quiet():
        _run_ordered(program.statements, 0, runners, [dict(values) for _ in program.statements])
    wanted = (*RESULT_ROLES, "temp") if keep_temps else RESULT_ROLES
    return {t.name: arrays[t.name].copy() for t in program.tensors if t.role in wanted}


class _ExternRunner:
    def __init__(
        self, statement: Extern, arrays: dict[str, np.ndarray], run_extern: RunExtern | None
    ) -> None:
        self.statement, self.arrays, self.run_extern = statement, arrays, run_extern

    def run(self, fixed: Mapping[str, int]) -> None:
        """Hand the call over."""
        if self.run_extern is None:
            at = f" ({self.statement.origin})" if self.statement.origin else ""
            raise Unsupported(
                f"{self.statement.name}: the interpreter has nothing to run"
                f" {self.statement.operator} with{at}; pass run_extern"
            )
        self.run_extern(self.statement, self.arrays)


Runner = Union[ExactRunner, VectorRunner, _ExternRunner]


# ------------------------------------------------------------------------------------- order


def _run_ordered(
    statements: Sequence[AnyStatement],
    depth: int,
    runners: Mapping[str, Runner],
    fixed: Sequence[dict[str, int]],
) -> None:
    """Run statements that agree on the first ``depth`` entries of their orders.

    Args: fixed: for each statement the values of symbols and of the ordered indices so far.
    """
    groups: dict[int, list[int]] = {}
    for k, statement in enumerate(statements):
        position = statement.order[depth]
        if not isinstance(position, int):
            raise IRError(f"{statement.name}: entry {depth} of its order must be a position")
        groups.setdefault(position, []).append(k)
    for position in sorted(groups):
        members = groups[position]
        loops = [k for k in members if len(statements[k].order) > depth + 1]
        if not loops:
            for k in members:
                runners[statements[k].name].run(fixed[k])
        elif len(loops) < len(members):
            names = ", ".join(statements[k].name for k in members)
            raise IRError(f"{names}: position {position} is both a statement and a loop")
        else:
            _run_loop([statements[k] for k in loops], depth + 1, runners, [fixed[k] for k in loops])


def _run_loop(
    statements: Sequence[AnyStatement],
    depth: int,
    runners: Mapping[str, Runner],
    fixed: Sequence[dict[str, int]],
) -> None:
    """One ``seq`` loop: every value of the statements' own indices, ascending, interleaved."""
    spans = []
    for statement, known in zip(statements, fixed, strict=True):
        runner, index = runners[statement.name], statement.order[depth]
        if isinstance(runner, _ExternRunner) or not isinstance(index, str):
            raise IRError(f"{statement.name}: entry {depth} of its order must be an index")
        spans.append((index, *runner.plan.hull(known)[index]))
    if not spans:
        return
    for value in range(min(s[1] for s in spans), max(s[2] for s in spans) + 1):
        active = [k for k, (_, low, high) in enumerate(spans) if low <= value <= high]
        inner = [{**fixed[k], spans[k][0]: value} for k in active]
        _run_ordered([statements[k] for k in active], depth + 1, runners, inner)


# ------------------------------------------------------------------------------------- storage


def _allocate(
    program: Program, inputs: Mapping[str, np.ndarray], symbols: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays of all tensors, and for each tensor the one whose bytes it shares."""
    arrays: dict[str, np.ndarray] = {}
    bases: dict[str, str] = {}
    pending = list(program.tensors)
    known = {t.name for t in program.tensors}
    while pending:
        waiting = []
        for t in pending:
            shape = tuple(int(d.evaluate(symbols)) for d in t.shape)
            if t.alias_of is None:
                arrays[t.name], bases[t.name] = _array(t, shape, inputs), t.name
            elif t.alias_of in arrays:
                arrays[t.name] = _alias(t, shape, arrays[t.alias_of])
                bases[t.name] = bases[t.alias_of]
            else:
                waiting.append(t)
        if len(waiting) == len(pending):
            bad = waiting[0]
            reason = "is in a circle" if bad.alias_of in known else "does not exist"
            raise IRError(f"tensor {bad.name}: alias_of {bad.alias_of} {reason}")
        pending = waiting
    return arrays, bases


def _array(t: Tensor, shape: tuple[int, ...], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    if t.role not in READ_ROLES:
        return numeric.garbage(shape, t.dtype)
    given = np.asarray(inputs[t.name])
    if given.dtype != numpy_dtype(t.dtype):
        raise InputError(f"{t.role} {t.name} is {given.dtype}, not {numpy_dtype(t.dtype)}")
    if t.dtype in MEMORY:
        given = np.asarray(round_to(given, t.dtype))
    if t.role in RESULT_ROLES:
        return np.array(given, order="C").reshape(shape)
    return np.ascontiguousarray(given).reshape(shape)


def _alias(t: Tensor, shape: tuple[int, ...], base: np.ndarray) -> np.ndarray:
    if base.size != int(np.prod(shape, dtype=np.int64)) or base.dtype != numpy_dtype(t.dtype):
        raise IRError(
            f"tensor {t.name}: {t.dtype}{list(shape)} cannot share the bytes of {t.alias_of},"
            f" {base.dtype}{list(base.shape)}"
        )
    return base.reshape(shape)


# ------------------------------------------------------------------------------------- symbols


def infer_symbols(
    program: Program,
    inputs: Mapping[str, np.ndarray],
    symbols: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Values of all symbols, from ``symbols`` and the inputs' shapes; checks shapes and ranges.

    Raises: ``InputError`` naming the tensor, dimension or symbol that does not fit.
    """
    values = {k: int(v) for k, v in (symbols or {}).items()}
    pending = _dimensions(program, inputs)
    while pending:
        waiting = []
        for t, dim, expected, size in pending:
            if not _match_dimension(t, dim, expected, size, values):
                waiting.append((t, dim, expected, size))
        if len(waiting) == len(pending):
            break
        pending = waiting
    for symbol in program.symbols:
        if symbol.name not in values:
            raise InputError(
                f"{program.name}: no input's shape determines symbol {symbol.name}; give its value"
            )
        value, upper = values[symbol.name], symbol.upper
        if value < symbol.lower or (upper is not None and value > upper):
            most = "" if upper is None else f" ≤ {upper}"
            raise InputError(
                f"{program.name}: {symbol.name} = {value}, but {symbol.lower} ≤ {symbol.name}{most}"
            )
    return values


def _dimensions(
    program: Program, inputs: Mapping[str, np.ndarray]
) -> list[tuple[Tensor, int, Affine, int]]:
    """Every dimension of every given tensor with its expected and its actual size."""
    out = []
    for t in program.by_role(*READ_ROLES):  # type: ignore[arg-type]
        if t.alias_of is not None:
            continue
        if t.name not in inputs:
            raise InputError(f"{program.name}: {t.role} {t.name} is missing")
        shape = np.shape(inputs[t.name])
        if len(shape) != len(t.shape):
            raise InputError(
                f"{t.role} {t.name} has {len(shape)} dimensions {list(shape)},"
                f" not {len(t.shape)} [{', '.join(map(str, t.shape))}]"
            )
        out += [(t, d, e, s) for d, (e, s) in enumerate(zip(t.shape, shape, strict=True))]
    return out


def _match_dimension(
    t: Tensor, dim: int, expected: Affine, size: int, values: dict[str, int]
) -> bool:
    """Check a dimension, or solve it for its one unknown symbol; False if that must wait."""
    unknown = expected.variables() - values.keys()
    if not unknown:
        if int(expected.evaluate(values)) != size:
            raise InputError(
                f"{t.role} {t.name} has size {size} in dimension {dim},"
                f" not {expected} = {expected.evaluate(values)}"
            )
        return True
    name = next(iter(unknown))
    factor = expected.coefficient(name)
    rest = expected - affine(name) * factor
    if len(unknown) > 1 or factor == 0 or rest.variables() - values.keys():
        return False
    solved, remainder = divmod(size - int(rest.evaluate(values)), factor)
    if remainder:
        raise InputError(
            f"{t.role} {t.name} has size {size} in dimension {dim}, which is never {expected}"
        )
    values[name] = solved
    return True
