"""Expressions of the IR as Triton source, over the tile that is open."""

from __future__ import annotations

from collections import Counter
from math import prod

from nestor.codegen.llvm.builder import round_to_f32
from nestor.codegen.triton.blocks import Context, Register, Value
from nestor.codegen.triton.functions import (
    binary_function,
    cast_function,
    unary_function,
    uniform_function,
)
from nestor.codegen.triton.names import FAILED, TYPES, literal
from nestor.errors import Unsupported
from nestor.ir.affine import Affine, affine
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
    children,
    distinct_nodes,
)
from nestor.ir.loopnest import Store
from nestor.ir.narrow_floats import BYTES
from nestor.ir.program import Tensor
from nestor.ir.types import DType

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip

_PLAIN = {
    "exp": "tl.exp", "exp2": "tl.exp2", "log": "tl.log", "log2": "tl.log2",
    "sin": "tl.sin", "cos": "tl.cos", "erf": "tl.erf", "floor": "tl.floor", "ceil": "tl.ceil",
    "abs": "tl.abs",
}  # fmt: skip

_LIBRARY = frozenset("isinf round rsqrt sign trunc".split())
_LIBRARY_F32 = frozenset("expm1 log1p sigmoid tanh".split())
"""Functions of one operand that ``library`` has; the latter are short, and good for f32 only."""


class Expressions:
    """Writes the expressions of one ``Compute``; what several use is computed once.

    Args: variables: values of ``Var`` nodes by name.
    """

    def __init__(self, ctx: Context, variables: dict[str, Value] | None = None):
        self.ctx = ctx
        self.variables = variables or {}
        self._uses: Counter[int] = Counter()
        self._known: dict[int, Value] = {}

    def value(self, expr: Expr) -> Value:
        """The value of a whole expression."""
        for node in distinct_nodes(expr):
            self._uses.update(id(child) for child in children(node))
        return self._visit(expr)

    def _visit(self, node: Expr) -> Value:
        known = self._known.get(id(node))
        if known is not None:
            return known
        found = self._write(node)
        if self._uses[id(node)] > 1 and not isinstance(node, (Const, Var)):
            found = self.ctx.assign("t", found)
        self._known[id(node)] = found
        return found

    def _write(self, node: Expr) -> Value:
        match node:
            case Const():
                if node.dtype is DType.f64 and round_to_f32(node.value) != node.value:
                    return self._typed(node)  # Triton takes what fits its range for an f32
                if node.dtype in BYTES:
                    return self._typed(node)  # and whole numbers for an int32
                return Value(literal(node.value, node.dtype))
            case Index():
                found = self.ctx.affine(node.value)
                return Value(f"tl.cast({found.text}, {TYPES[node.dtype]})", found.dims)
            case Var():
                return self.variables[node.name]
            case Load():
                return self.load(node)
            case Unary():
                return self._unary(node)
            case Binary():
                return self._binary(node)
            case Select():
                condition, a, b = (self._visit(x) for x in (node.condition, node.a, node.b))
                dims = condition.dims | a.dims | b.dims
                return Value(f"tl.where({condition.text}, {a.text}, {b.text})", dims)
            case Cast():
                return self._cast(node)
            case Call():
                return self._call(node)

    # ---------------------------------------------------------------- operators

    def _unary(self, node: Unary) -> Value:
        op, dtype = node.op, node.x.dtype
        x = self._typed(node.x)
        if op == "neg":  # Triton 3.6 makes a minus 0 - x, which has another sign where x is 0
            return Value(f"({x.text} * -1.0)" if dtype.is_float else f"(-{x.text})", x.dims)
        if op == "not":
            return Value(f"(~{x.text})", x.dims)
        if op == "isnan":
            return Value(f"({x.text} != {x.text})", x.dims)
        if op in ("sqrt", "reciprocal"):  # correctly rounded, which tl's plain ones are not in f32
            is_single = dtype is DType.f32
            if op == "sqrt":
                return Value(f"tl.sqrt{'_rn' if is_single else ''}({x.text})", x.dims)
            text = f"tl.div_rn(1.0, {x.text})" if is_single else f"(1.0 / {x.text})"
            return Value(text, x.dims)
        if op in _PLAIN and (dtype.is_float or op == "abs"):
            return Value(f"{_PLAIN[op]}({x.text})", x.dims)
        own = _LIBRARY | _LIBRARY_F32 if dtype is DType.f32 else _LIBRARY
        if op in own and (dtype.is_float or op == "sign"):
            return Value(f"lib.{op}({x.text})", x.dims)
        return self._function(unary_function(op, dtype), x)

    def _binary(self, node: Binary) -> Value:
        op, dtype = node.op, node.a.dtype
        if op in _INFIX:
            a, b = self._visit(node.a), self._visit(node.b)
            return Value(f"({a.text} {_INFIX[op]} {b.text})", a.dims | b.dims)
        a, b = self._typed(node.a), self._typed(node.b)
        dims = a.dims | b.dims
        if op == "div" and dtype.is_float:
            text = f"({a.text} / {b.text})"
            return Value(f"tl.div_rn({a.text}, {b.text})" if dtype is DType.f32 else text, dims)
        if op in ("min", "max") and dtype.is_float:
            nan = "propagate_nan=tl.PropagateNan.ALL"
            return Value(f"tl.{op}imum({a.text}, {b.text}, {nan})", dims)
        if op in ("min", "max") and dtype is not DType.bool:
            return Value(f"tl.{op}imum({a.text}, {b.text})", dims)
        if op in ("min", "max"):
            return Value(f"({a.text} {'&' if op == 'min' else '|'} {b.text})", dims)
        return self._function(binary_function(op, dtype), a, b)

    def _function(self, found: tuple[str, dict[str, str]], *arguments: Value) -> Value:
        """A call of a function that the kernel's module has."""
        name, sources = found
        self.ctx.functions.update(sources)
        dims = frozenset().union(*(a.dims for a in arguments))
        return Value(f"{name}({', '.join(a.text for a in arguments)})", dims)

    def _typed(self, node: Expr) -> Value:
        """A value that has its type even where nothing stands beside it."""
        if isinstance(node, Const):
            return Value(f"tl.full((), {literal(node.value, node.dtype)}, {TYPES[node.dtype]})")
        return self._visit(node)

    def _cast(self, node: Cast) -> Value:
        x, source, target = self._typed(node.x), node.x.dtype, node.dtype
        if source in BYTES:
            x, source = converted(x, DType.f32, source), DType.f32
        if target in BYTES:
            single = converted(x, DType.f32, source)
            return Value(f"lib.to_{short_name(target)}({single.text})", x.dims)
        if target is DType.bool:
            return Value(f"({x.text} != 0)", x.dims)
        if source.is_float and target.is_int:
            wide = DType.f32 if source.is_storage_only else source
            return self._function(cast_function(wide, target), converted(x, wide, source))
        if source is DType.f64 and target.is_storage_only:
            x, source = converted(x, DType.f32), DType.f32
        return converted(x, target, source)

    def _call(self, node: Call) -> Value:
        args = [self._typed(a) for a in node.args]
        if node.function == "random_uniform":
            return self._function(uniform_function(node.dtype), *args)
        if node.function != "fma":
            raise Unsupported(f"'{node.function}' has no Triton code yet")
        dims = frozenset().union(*(a.dims for a in args))
        return Value(f"tl.fma({', '.join(a.text for a in args)})", dims)

    # ---------------------------------------------------------------- memory

    def load(self, node: Load, *, is_raw: bool = False) -> Value:
        """One element an instance, from a register block or from memory.

        Args: is_raw: as memory has it; otherwise floats of 8 bits are their bits.
        """
        register = self.ctx.registers.get(node.tensor)
        if register is not None:
            return self._from_register(node, register)
        pointer, mask = self.pointer(node.tensor, node.indices, node.predicate)
        other = None if node.other is None else self._visit(node.other)
        is_plain = isinstance(node.other, Const) and node.dtype is not DType.bool
        rest = other.text if other is not None and is_plain else "0"
        if node.dtype in BYTES:  # memory's type is that of the chip
            is_plain, rest = False, "0.0"
        guard = f", mask={mask.text}, other={rest}" if mask.text else ""
        found = self._loaded(node.tensor, Value(f"tl.load({pointer.text}{guard})", pointer.dims))
        if node.dtype in BYTES and not is_raw:
            found = Value(f"lib.bits({found.text})", found.dims)
        own = self.ctx.condition(node.predicate)
        if other is None or is_plain or not own.text:
            return found
        dims = found.dims | own.dims | other.dims
        return Value(f"tl.where({own.text}, {found.text}, {other.text})", dims)

    def _loaded(self, tensor: str, load: Value) -> Value:
        """A load's block; the same one is not loaded twice."""
        ctx, key = self.ctx, (tensor, load.text)
        if key not in ctx.loads:
            name = ctx.assign(f"{ctx.pointers[tensor]}_block", load).text
            ctx.loads[key] = name, tuple(p for p, a in enumerate(ctx.axes) if a in load.dims)
        name, places = ctx.loads[key]
        return Value(name, frozenset(ctx.axes[p] for p in places))

    def _from_register(self, node: Load, register: Register) -> Value:
        if not register.name:
            raise Unsupported(f"buffer {node.tensor} is read before anything is stored to it")
        if register.running:
            running = self.ctx.expanded(register.name, register.running)
            return Value(running, frozenset(register.running))
        dims = register_dims(self.ctx, node.tensor, register, node.indices)
        text = register.name
        if dims != tuple(a for a in self.ctx.axes if a in dims):
            order = [dims.index(a) for a in self.ctx.axes if a in dims]
            text = f"tl.permute({text}, {tuple(order)})"
            dims = tuple(a for a in self.ctx.axes if a in dims)
        found = Value(self.ctx.expanded(text, dims), frozenset(dims))
        if not node.predicate:
            return found
        assert node.other is not None
        test, other = self.ctx.condition(node.predicate), self._visit(node.other)
        if not test.text:
            return found
        every = found.dims | test.dims | other.dims
        return Value(f"tl.where({test.text}, {found.text}, {other.text})", every)

    def pointer(
        self, name: str, indices: tuple[IndexExpr, ...], predicate: tuple[Affine, ...] = ()
    ) -> tuple[Value, Value]:
        """Where elements lie, and which of them may be touched (empty: all).

        Indices that are data are tested: what lies outside is not touched, and reported.
        """
        ctx = self.ctx
        tensor = ctx.tensors[name]
        data = {d: self._data(i) for d, i in enumerate(indices) if not isinstance(i, Affine)}
        offset = self._offset(tensor, indices, data)
        mask = ctx.condition((*self._relevant(ctx.conditions, offset.dims), *predicate))
        if data:
            mask = self._tested(tensor, data, mask)
        dims = offset.dims | mask.dims
        text = offset.text
        if mask.dims - offset.dims:
            # A mask is as large as its pointers at most.
            text = f"({text}) + tl.zeros({ctx.shape(dims)}, tl.int32)"
        base = ctx.pointers[name]
        return Value(base if text == "0" else f"{base} + {text}", dims), mask

    def _data(self, index: Expr) -> Value:
        found = self._visit(index)
        return found if found.text.isidentifier() else self.ctx.assign("index", found)

    def _tested(self, tensor: Tensor, data: dict[int, Value], mask: Value) -> Value:
        """A mask of what lies inside a tensor; the rest of ``mask`` is reported."""
        ctx = self.ctx
        tests = []
        for d, value in data.items():
            extent = ctx.affine(tensor.shape[d])
            tests.append(f"({value.text} >= 0) & ({value.text} < {extent.text})")
        dims = frozenset().union(*(v.dims for v in data.values()))
        inside = ctx.assign("inside", Value(" & ".join(tests), dims))
        where = f"({mask.text}) & " if mask.text else ""
        ctx.line(f"lib.report({FAILED}, {where}~{inside.text})")
        ctx.checks = True
        return Value(f"{where}{inside.text}", dims | mask.dims)

    def _relevant(self, conditions: tuple[Affine, ...], dims: frozenset[str]) -> tuple[Affine, ...]:
        """The conditions that an access has to heed: those on loops that move it. What fails on
        others alone holds for another instance of the same address."""
        axes = frozenset(self.ctx.axes)
        found = []
        for c in conditions:
            varies = c.variables() & axes
            if not varies or varies & dims:
                found.append(c)
        return tuple(found)

    def _offset(
        self, tensor: Tensor, indices: tuple[IndexExpr, ...], data: dict[int, Value]
    ) -> Value:
        """The element's number in memory. Args: data: values of indices that are no affines."""
        gathered = {f"\0{d}": value for d, value in data.items()}
        logical = [i if isinstance(i, Affine) else affine(f"\0{d}") for d, i in enumerate(indices)]
        physical, shape = logical, list(tensor.shape)
        if tensor.layout is not None:
            values = {f"d{d}": i for d, i in enumerate(logical)}
            physical = [p.substitute(values) for p in tensor.layout.physical]
            shape = list(tensor.layout.shape)
        ctx = self.ctx
        for name, value in gathered.items():
            ctx.loops[name] = f"({value.text})"
            ctx.ranges[name] = (0, None)
        dims = frozenset().union(*(v.dims for v in gathered.values()))
        sizes = [e.const if e.is_const else None for e in shape]
        parts: list[Value] = []
        total = affine(0)
        for d, index in enumerate(physical):
            after = sizes[d + 1 :]
            if all(s is not None for s in after):
                total = total + index * prod(s for s in after if s is not None)
                continue
            stride = " * ".join(f"({ctx.affine(e).text})" for e in shape[d + 1 :])
            at = ctx.affine(index.simplify(ctx.ranges))
            if at.text != "0":
                parts.append(Value(f"({at.text}) * {stride}", at.dims))
        rest = ctx.affine(total.simplify(ctx.ranges))
        if rest.text != "0" or not parts:
            parts.append(rest)
        for name in gathered:
            del ctx.loops[name], ctx.ranges[name]
        text = " + ".join(p.text for p in parts)
        return Value(text, dims.union(*(p.dims for p in parts)))


def short_name(dtype: DType) -> str:
    """A float of 8 bits as the library calls it."""
    return dtype.value.removeprefix("f8")


def converted(x: Value, target: DType, source: DType | None = None) -> Value:
    """A value in another type, which is no float of 8 bits; itself if that is ``source``."""
    if source is target:
        return x
    if source is not None and source in BYTES:
        x = Value(f"lib.from_{short_name(source)}({x.text})", x.dims)
        return converted(x, target, DType.f32)
    return Value(f"({x.text}).to({TYPES[target]})", x.dims)


def register_dims(
    ctx: Context, name: str, register: Register, indices: tuple[IndexExpr, ...]
) -> tuple[str, ...]:
    """The tile's loops that the dimensions of a register block run along.

    Raises: ``Unsupported`` where an index is no loop of the tile by itself: a block's elements
        cannot be addressed.
    """
    dims: list[str] = []
    for d, index in enumerate(indices):
        if d not in register.places:
            continue
        names = index.variables() if isinstance(index, Affine) else frozenset()
        axis = next(iter(names), "")
        if len(names) != 1 or index != affine(axis) or axis not in ctx.axes:
            raise Unsupported(f"buffer {name} is indexed by {index}, which is no loop of a tile")
        size = register.sizes.setdefault(d, ctx.sizes[axis])
        if size != ctx.sizes[axis] or size < register.shape[d]:
            raise Unsupported(f"buffer {name} has {register.shape[d]} elements along {axis}")
        dims.append(axis)
    return tuple(dims)


def store(ctx: Context, target: Store, value: Value, dtype: DType) -> None:
    """Store a value of every instance."""
    register = ctx.registers.get(target.target)
    if register is None:
        pointer, mask = Expressions(ctx).pointer(target.target, target.indices)
        if value.dims - pointer.dims:
            raise Unsupported(f"instances store different values to one element of {target.target}")
        guard = f", mask={mask.text}" if mask.text else ""
        text = value.text
        if dtype in BYTES:
            text = f"lib.to_stored({ctx.pointers[target.target]}, {text})"
        ctx.line(f"tl.store({pointer.text}, {text}{guard})")
        if not all(isinstance(i, Affine) for i in target.indices):
            # Another instance may go to the same place, in another thread.
            ctx.line("tl.debug_barrier()")
        ctx.loads = {k: v for k, v in ctx.loads.items() if k[0] != target.target}
        return
    dims = register_dims(ctx, target.target, register, target.indices)
    if frozenset(dims) != frozenset(a for a in ctx.axes if a in dims or a in value.dims):
        raise Unsupported(f"a value of more dimensions is stored to buffer {target.target}")
    _keep(ctx, target.target, register, dims, value)


def _keep(ctx: Context, name: str, register: Register, dims: tuple[str, ...], value: Value) -> None:
    """Make a value the contents of a register block."""
    text = value.text
    ordered = tuple(a for a in ctx.axes if a in dims)
    if value.dims != frozenset(dims):
        text = ctx.spread(value, frozenset(dims), register.dtype).text
    if ordered != ctx.axes:
        sizes = ", ".join(str(ctx.sizes[a]) for a in ordered)
        text = f"tl.reshape({text}, ({sizes},))" if ordered else text
    if ordered != dims:
        text = f"tl.permute({text}, {tuple(ordered.index(d) for d in dims)})"
    register.name = register.name or ctx.names.fresh(name)
    ctx.line(f"{register.name} = {text}")
