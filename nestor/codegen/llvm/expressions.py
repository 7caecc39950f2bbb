"""Scalar expressions of the IR as code, in one lane or many."""

from __future__ import annotations

from typing import assert_never

from nestor.codegen.llvm import mathlib
from nestor.codegen.llvm.addressing import AccessPlan, Location, locate, plan_access
from nestor.codegen.llvm.builder import Val, bool_val, int_val
from nestor.codegen.llvm.context import IN_BODY, LANE, Context, Variable
from nestor.codegen.llvm.indexing import condition, resize_int, scalar_affine, vector_affine
from nestor.codegen.llvm.memory import any_lane, load
from nestor.codegen.llvm.ops import Ops, constant
from nestor.codegen.llvm.storage import tensor_storage
from nestor.codegen.llvm.types import REGISTER_TYPE
from nestor.errors import InternalError
from nestor.ir.affine import Affine, Interval, variable
from nestor.ir.expr import (
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Index,
    IndexExpr,
    Load,
    Select,
    Unary,
    Var,
    loads,
)
from nestor.ir.types import DType


class Expressions:
    """Evaluates expressions at one place of the nest; shared subexpressions once.

    Args: values: what the ``Var`` names mean.
    """

    def __init__(self, ctx: Context, values: dict[str, Val] | None = None):
        self.ctx = ctx
        self.ops = Ops(ctx.fb, ctx.info.fp_contract)
        self.values = values or {}
        self._known: dict[int, Val] = {}

    def evaluate(self, node: Expr) -> Val:
        """The value of ``node``; a scalar when it is equal in all lanes."""
        found = self._known.get(id(node))
        if found is None:
            found = self._known[id(node)] = self._evaluate(node)
        return found

    def _evaluate(self, node: Expr) -> Val:
        match node:
            case Const():
                return self._const(node)
            case Index():
                return self._index(node)
            case Var():
                return self.values[node.name]
            case Load():
                return self._load(node)
            case Unary():
                return self.ops.unary(node.op, self.evaluate(node.x), node.x.dtype)
            case Binary():
                return self._binary(node)
            case Select():
                test = self.evaluate(node.condition)
                return self.ctx.fb.select(test, self.evaluate(node.a), self.evaluate(node.b))
            case Cast():
                return self.ops.cast(self.evaluate(node.x), node.x.dtype, node.dtype)
            case Call():
                return self._call(node)
        assert_never(node)

    def _const(self, node: Const) -> Val:
        if node.dtype.is_storage_only:
            single = constant(node.value, DType.f32)
            return self.ops.cast(single, DType.f32, node.dtype)
        return constant(node.value, node.dtype)

    def _index(self, node: Index) -> Val:
        ctx = self.ctx
        a = ctx.resolve(node.value)
        if node.dtype.is_float or node.dtype is DType.bool:
            wide = Index(value=node.value)
            return self.ops.cast(self._index(wide), DType.i64, node.dtype)
        if a.is_const:
            return constant(a.const, node.dtype)
        if ctx.is_varying(a):
            return vector_affine(ctx, a, REGISTER_TYPE[node.dtype])
        return resize_int(ctx, scalar_affine(ctx, a), REGISTER_TYPE[node.dtype], signed=True)

    def _binary(self, node: Binary) -> Val:
        a, b = self.evaluate(node.a), self.evaluate(node.b)
        return self.ops.binary(node.op, a, b, node.a.dtype)

    def _call(self, node: Call) -> Val:
        args = [self.evaluate(x) for x in node.args]
        if node.function == "fma":
            return self.ops.fma(*args)
        if node.function == "random_uniform":
            return mathlib.random_uniform(self.ctx.fb, args, REGISTER_TYPE[node.dtype])
        raise InternalError(f"no code for the function {node.function!r}")

    # --- loads -----------------------------------------------------------------------------

    def _load(self, node: Load) -> Val:
        ctx = self.ctx
        if not node.predicate:
            return self._plain_load(node, None)
        assert node.other is not None
        scalar, lanes = condition(ctx, node.predicate)
        if scalar.literal and scalar.text == "false":
            return self.evaluate(node.other)
        test = scalar if lanes is None else lanes if scalar.literal else self._join(scalar, lanes)
        if test.literal:
            return self._plain_load(node, None)
        zero = isinstance(node.other, Const) and _is_positive_zero(node.other)
        other = self._other(node.other, test)
        with ctx.where(test):
            inner = Expressions(ctx, self.values)
            value = inner._plain_load(node, other if test.lanes else None)
            if zero and not test.lanes and inner.reads_zero:
                # Where the condition fails, the address was that of zeros.
                return value
        return ctx.fb.select(test, value, other)

    reads_zero = False

    def _join(self, scalar: Val, lanes: Val) -> Val:
        return self.ctx.and_(self.ctx.fb.broadcast(scalar, self.ctx.lanes), lanes)

    def _other(self, node: Expr, test: Val) -> Val:
        """The value where the predicate fails; its own loads happen only there."""
        if not any(True for _ in loads(node)):
            return self.evaluate(node)
        with self.ctx.where(self.ctx.not_(test)):
            return Expressions(self.ctx, self.values).evaluate(node)

    def _plain_load(self, node: Load, passthru: Val | None) -> Val:
        given = self.ctx.given.get((node.tensor, id(node.indices)))
        if given is not None and not node.predicate:
            return given
        at = self.location(node.tensor, node.indices)
        if at is None:
            return self._const(Const(value=0, dtype=node.dtype))
        is_row = at.offsets is None or at.is_contiguous or at.is_reversed
        self.reads_zero = is_row and not at.inside
        return load(self.ctx, at, node.dtype, passthru if node.dtype is not DType.bool else None)

    # --- addresses -------------------------------------------------------------------------

    def location(self, name: str, indices: tuple[IndexExpr, ...]) -> Location | None:
        """Where an access of logical indices lies; None if the tensor has no element."""
        plan = self.plan(name, indices)
        return None if plan is None else locate(self.ctx, plan)

    def plan(self, name: str, indices: tuple[IndexExpr, ...]) -> AccessPlan | None:
        """Analyse an access of logical indices; None if the tensor has no element."""
        ctx = self.ctx
        private = ctx.buffers.get(name)
        storage = tensor_storage(ctx, name) if private is None else private.storage
        # The nest keeps its index tuples alive, so their identity is a key.
        plan = ctx.plans.get((name, id(indices)))
        if plan is not None and plan.storage is storage:
            return plan
        depends_on_data = any(not isinstance(i, Affine) for i in indices)
        if private is None and storage.size == 0:
            if depends_on_data:
                self._flag(bool_val(True))
            return None
        plan = plan_access(storage, self._physical(name, indices))
        if not depends_on_data:
            ctx.plans[name, id(indices)] = plan
        return plan

    def _physical(self, name: str, indices: tuple[IndexExpr, ...]) -> list[Affine]:
        """Indices of the array in memory: through the layout, with data-dependent ones checked."""
        private = self.ctx.buffers.get(name)
        if private is not None:
            own = [self._affine(indices[d], private.buffer.shape[d]) for d in private.order]
            return [*own, variable(LANE)] if private.per_lane else own
        tensor = self.ctx.info.tensors[name]
        affines = [self._affine(i, tensor.shape[d]) for d, i in enumerate(indices)]
        if tensor.layout is None:
            return affines
        logical = {f"d{d}": a for d, a in enumerate(affines)}
        return [p.substitute(logical) for p in tensor.layout.physical]

    def _affine(self, index: IndexExpr, extent: Affine) -> Affine:
        return index if isinstance(index, Affine) else self._checked_index(index, extent)

    def _checked_index(self, node: Expr, extent: Affine) -> Affine:
        """A data-dependent index, clamped into the dimension, as a variable of its own.

        Out of range is noted in the kernel's flag, where memory may be touched at all.
        """
        ctx, fb = self.ctx, self.ctx.fb
        value = resize_int(ctx, self.evaluate(node), "i64", signed=node.dtype.is_signed)
        limit = scalar_affine(ctx, ctx.resolve(extent))
        last = (
            fb.op("sub", limit, int_val(1)) if not limit.literal else int_val(int(limit.text) - 1)
        )
        # One unsigned comparison finds negative values too.
        self._flag(fb.compare("icmp uge", value, limit))
        clamped = fb.intrinsic("llvm.smin", fb.intrinsic("llvm.smax", value, int_val(0)), last)
        name = f"%data{fb.fresh('')}"
        high = ctx.resolve(extent).bounds(ctx.ranges)[1]
        bounds: Interval = (0, None if high is None else high - 1)
        ctx.ranges[name] = bounds
        if clamped.lanes:
            ctx.varying.add(name)
            ctx.vectors[name] = clamped
        else:
            ctx.variables[name] = Variable(clamped, IN_BODY)
        return variable(name)

    def _flag(self, outside: Val) -> None:
        """Note ``outside`` where the context's mask and condition hold."""
        ctx, fb = self.ctx, self.ctx.fb
        mask = ctx.full_mask()
        if mask is not None:
            outside = ctx.and_(mask, fb.broadcast(outside, ctx.lanes))
        test = any_lane(ctx, outside)
        if ctx.condition is not None:
            test = ctx.and_(ctx.condition, test)
        if ctx.flag is None:
            raise InternalError(f"kernel {ctx.info.name}: a gather was not foreseen")
        old = fb.effect(f"load i8, ptr {ctx.flag}, align 1", "i8")
        new = fb.op("or", old, fb.convert("zext", test, "i8"))
        fb.line(f"store i8 {new.text}, ptr {ctx.flag}, align 1")


def _is_positive_zero(node: Const) -> bool:
    return node.value == 0 and str(node.value) in ("0", "0.0", "False")
