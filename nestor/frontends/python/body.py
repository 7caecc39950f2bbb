"""Python statements → structured nodes (``tree``)."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from nestor.errors import Unsupported
from nestor.frontends.python import values
from nestor.frontends.python.annotations import ElementType, empty, zeros
from nestor.frontends.python.conditions import FALSE, TRUE, negate, separate
from nestor.frontends.python.expressions import ArrayRef, Expressions
from nestor.frontends.python.frame import Frame, Knowledge
from nestor.frontends.python.functions import known_function
from nestor.frontends.python.inlining import bind_call
from nestor.frontends.python.parameters import Parameter
from nestor.frontends.python.ranges import read_range
from nestor.frontends.python.source import Source
from nestor.frontends.python.tree import Assign, Branch, Loop, Node
from nestor.frontends.python.values import TypeProblem, Value
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Const, Expr, Unary, Var, const
from nestor.ir.names import Names, fresh_name
from nestor.ir.program import Tensor
from nestor.ir.types import DType

MAX_INLINE_DEPTH = 16

_REFUSED: dict[str, tuple[str, str]] = {
    "While": ("a while loop", "use `for … in range(…)` with bounds known when the loop starts"),
    "Break": ("break", "make the condition part of the loop's bounds, or of an `if` inside"),
    "Continue": ("continue", "put the rest of the loop's body under an `if`"),
    "Try": ("try", "remove it: kernels raise nothing"),
    "With": ("with", "remove it"),
    "FunctionDef": ("a nested function", "write it as a @nestor.kernel of its own and call that"),
    "Assert": ("assert", "check arguments outside the kernel"),
    "Raise": ("raise", "check arguments outside the kernel"),
    "Delete": ("del", "remove it"),
    "Global": ("global", "pass values as parameters"),
    "Nonlocal": ("nonlocal", "pass values as parameters"),
    "Import": ("import", "import at the top of the file"),
    "ImportFrom": ("import", "import at the top of the file"),
    "Match": ("match", "use `if`"),
}


class Body:
    """Lowers one kernel's statements, those of kernels that it calls too.

    Attributes:
        tensors: local arrays.
        written: tensors that are assigned to.
    """

    def __init__(self, knowledge: Knowledge, taken: set[str]) -> None:
        self.knowledge = knowledge
        self.names = Names(taken, first=2)
        self.tensors: list[Tensor] = []
        self.written: set[str] = set()
        self.calls: list[Source] = []
        self.data_guard: Expr | None = None
        self.active: list[str] = []

    def function(self, frame: Frame) -> list[Node]:
        """The nodes of a whole function whose parameters ``frame`` has bound."""
        if any(s.tree is frame.source.tree for s in self.calls):
            raise frame.source.unsupported(
                frame.source.tree, "a kernel that calls itself", "use a loop"
            )
        self.calls.append(frame.source)
        lowering = Statements(self, frame)
        nodes = lowering.block(frame.source.tree.body, scoped=False)
        self.calls.pop()
        return nodes

    def fresh(self, name: str) -> str:
        """``name``, or with a number after it if that is taken; taken from now on."""
        return self.names.fresh(name)

    def index_name(self, name: str) -> str:
        """A name for a loop index: its own, unless a tensor, a size or a loop around has it."""
        found = fresh_name(name, {*self.names, *self.active}, first=2)
        self.active.append(found)
        return found


def hidden_name(prefix: str, name: str, at: ast.AST) -> str:
    """The key of a scalar that the source does not name, by its place in the source."""
    return f"{prefix}{name}.{getattr(at, 'lineno', 0)}.{getattr(at, 'col_offset', 0)}"


class Statements:
    """The statements of one function."""

    def __init__(self, body: Body, frame: Frame) -> None:
        self.body, self.frame = body, frame
        self.source = frame.source
        self.expressions = Expressions(frame)
        self.expressions.data_guard = body.data_guard

    def block(self, statements: Sequence[ast.stmt], *, scoped: bool = True) -> list[Node]:
        """Lower a block; names that it binds end with it."""
        out: list[Node] = []
        if scoped:
            self.frame.blocks.append({})
        for position, statement in enumerate(statements):
            is_last = not scoped and position == len(statements) - 1
            try:
                out += self._statement(statement, is_last)
            except TypeProblem as problem:
                hint = "convert it, e.g. nestor.f64(x)"
                raise self.source.wrong(statement, str(problem), hint) from None
        if scoped:
            self.frame.blocks.pop()
        return out

    def _statement(self, node: ast.stmt, is_last: bool) -> list[Node]:
        match node:
            case ast.Assign():
                return self._assign(node)
            case ast.AugAssign(target=target, op=op, value=value):
                return self._augmented(node, target, op, value)
            case ast.AnnAssign():
                return self._annotated(node)
            case ast.For():
                return self._for(node)
            case ast.If():
                return self._if(node)
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                return []
            case ast.Expr(value=ast.Call() as call):
                return self._call(call)
            case ast.Return(value=None) if is_last:
                return []
            case _:
                raise self._refusal(node)

    def _refusal(self, node: ast.stmt) -> Unsupported:
        if isinstance(node, ast.Return):
            return self.source.unsupported(
                node,
                "return: a kernel returns nothing",
                "write results into array parameters; a bare return may end the function",
            )
        what, instead = _REFUSED.get(
            type(node).__name__,
            ("this statement", "use loops over range, if, assignments and calls of kernels"),
        )
        return self.source.unsupported(node, f"{what} is not part of the kernel language", instead)

    # ------------------------------------------------------------------------------ assignments

    def _assign(self, node: ast.Assign) -> list[Node]:
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            made = self._local_array(node.targets[0], node.value)
            if made is not None:
                return made
        if len(node.targets) == 1 and not isinstance(node.targets[0], (ast.Tuple, ast.List)):
            return self._store(node.targets[0], self.expressions.value(node.value), node)
        pairs: list[tuple[ast.expr, ast.expr]] = []
        for target in node.targets:
            if isinstance(target, (ast.Tuple, ast.List)):
                given = node.value
                if not isinstance(given, ast.Tuple) or len(given.elts) != len(target.elts):
                    raise self.source.unsupported(
                        node, "unpacking of something else than a tuple of that length",
                        "assign one value at a time",
                    )  # fmt: skip
                pairs += zip(target.elts, given.elts)
            else:
                pairs.append((target, node.value))
        # Python evaluates all values first, and then stores from the left.
        out: list[Node] = []
        held: dict[int, Value] = {}
        for _, value in pairs:
            if id(value) not in held:
                held[id(value)] = self._hold(self.expressions.value(value), value, out)
        for target, value in pairs:
            out += self._store(target, held[id(value)], node)
        return out

    def _hold(self, value: Value, at: ast.AST, out: list[Node]) -> Value:
        """``value`` in a scalar of its own, unless nothing can change it."""
        if value.affine is not None:
            return value
        key = hidden_name(self.frame.prefix, "value", at)
        self.body.knowledge.note_type(key, value)
        dtype, weak = self.body.knowledge.types[key]
        out.append(Assign(key, None, values.convert(value, dtype), self.source, at))
        return Value(Var(name=key, dtype=dtype), weak)

    def _annotated(self, node: ast.AnnAssign) -> list[Node]:
        kind = self.expressions.captured(node.annotation)
        if not isinstance(node.target, ast.Name) or not (
            isinstance(kind, ElementType) or kind in (int, float)
        ):
            raise self.source.unsupported(
                node, "only scalars can be declared", "write x: nestor.f64 = 0.0"
            )
        if isinstance(kind, ElementType):
            key = self.frame.hold(node.target.id)
            knowledge = self.body.knowledge
            knowledge.demoted.add(key)
            if key not in knowledge.declared:
                knowledge.declared.add(key)
                knowledge.types[key] = (kind.dtype, False)
        if node.value is None:
            return []
        return self._store(node.target, self.expressions.value(node.value), node)

    def _augmented(
        self, node: ast.stmt, target: ast.expr, op: ast.operator, value: ast.expr
    ) -> list[Node]:
        load = ast.copy_location(_as_load(target), target)
        before = self.expressions.value(load)
        return self._store(
            target, self.expressions.operate(load, op, before, self.expressions.value(value)), node
        )

    def _store(self, target: ast.expr, value: Value, at: ast.stmt) -> list[Node]:
        match target:
            case ast.Name(id=name):
                return self._store_scalar(target, name, value, at)
            case ast.Subscript():
                return [self._store_element(target, value, at)]
            case _:
                raise self.source.unsupported(
                    target, "this cannot be assigned to", "assign to a name or an array element"
                )

    def _store_element(self, target: ast.Subscript, value: Value, at: ast.stmt) -> Assign:
        owner = self.expressions.lower(target.value)
        if not isinstance(owner, ArrayRef):
            raise self.source.unsupported(
                target, "only array elements can be assigned", "index an array"
            )
        ref = self.expressions.narrowed(target, owner)
        if ref.shape:
            raise self.source.unsupported(
                target,
                f"array '{ref.tensor}' has {len(ref.shape)} dimension(s) left to index",
                "assign element by element, in loops",
            )
        new = values.convert(value, ref.dtype)
        self.body.written.add(ref.tensor)
        return Assign(ref.tensor, ref.prefix, new, self.source, at)

    def _store_scalar(self, node: ast.Name, name: str, value: Value, at: ast.stmt) -> list[Node]:
        frame, body = self.frame, self.body
        bound = frame.bound(name)
        if isinstance(bound, ArrayRef):
            raise self.source.unsupported(
                node, f"'{name}' is an array; it cannot be rebound", "assign to its elements"
            )
        if name in frame.fixed:
            raise self.source.unsupported(
                node,
                f"'{name}' is a {frame.fixed[name]} and cannot be assigned",
                "copy it into another name first",
            )
        is_plain = value.affine is not None or (value.weak and isinstance(value.expr, Const))
        if is_plain and frame.propagate(name, value):
            return []
        key = frame.hold(name)
        body.knowledge.demoted.add(key)
        body.knowledge.note_type(key, value)
        dtype, _ = body.knowledge.types[key]
        new = values.convert(value, dtype)
        return [Assign(key, None, new, self.source, at)]

    def _local_array(self, target: ast.Name, value: ast.expr) -> list[Node] | None:
        """``x = nestor.zeros(shape, dtype)``: a temporary; None if it is something else."""
        if not isinstance(value, ast.Call):
            return None
        maker = self.expressions.callee(value.func)
        kind = known_function(maker)
        if maker not in (zeros, empty) and (kind is None or kind[0] != "array"):
            return None
        is_zeros = maker is zeros or (kind is not None and kind[1] == "zeros")
        if self.expressions.data_guard is not None or self.frame.bound(target.id) is not None:
            raise self.source.unsupported(
                value, "an array made under a data-dependent `if`, or over another of that name",
                "make local arrays first, each under its own name",
            )  # fmt: skip
        shape, dtype = self._array_arguments(value)
        tensor = Tensor(
            name=self.body.fresh(f"{self.frame.prefix}{target.id}"),
            shape=shape,
            dtype=dtype,
            role="temp",
        )
        self.body.tensors.append(tensor)
        self.frame.bind(target.id, ArrayRef(tensor.name, dtype, shape))
        if not is_zeros:
            return []
        names = [self.body.fresh(f"{tensor.name}_{k}") for k in range(len(shape))]
        fill: Node = Assign(
            tensor.name, tuple(affine(n) for n in names), const(0, dtype), self.source, value
        )
        self.body.written.add(tensor.name)
        for name, size in zip(reversed(names), reversed(shape)):
            fill = Loop(name, (affine(0),), (size,), [fill], self.source, value)
        return [fill]

    def _array_arguments(self, node: ast.Call) -> tuple[tuple[Affine, ...], DType]:
        given = dict(zip(("shape", "dtype"), node.args))
        given.update({k.arg: k.value for k in node.keywords if k.arg})
        if "shape" not in given or set(given) - {"shape", "dtype"}:
            raise self.source.wrong(
                node, "an array needs a shape", "nestor.zeros((n, m), nestor.f64)"
            )
        sizes = given["shape"]
        items = sizes.elts if isinstance(sizes, (ast.Tuple, ast.List)) else [sizes]
        shape = tuple(self.expressions.affine(s, "the size of a local array") for s in items)
        for size, item in zip(shape, items):
            if self.frame.is_index(size):
                raise self.source.unsupported(
                    item, "the size of a local array depends on a loop index",
                    "make it as large as it can get",
                )  # fmt: skip
        if "dtype" not in given:
            return shape, DType.f64
        found = self.expressions.captured(given["dtype"])
        if isinstance(found, ElementType):
            return shape, found.dtype
        known = known_function(found)
        names = {float: DType.f64, int: DType.i64}
        if known is not None and known[0] == "cast":
            return shape, values.dtype_named(known[1])
        if found in names:
            return shape, names[found]
        raise self.source.wrong(node, "no element type", "nestor.zeros((n, m), nestor.f64)")

    # ------------------------------------------------------------------------------ loops

    def _for(self, node: ast.For) -> list[Node]:
        if node.orelse:
            raise self.source.unsupported(node, "for … else", "put the statements after the loop")
        if not isinstance(node.target, ast.Name):
            raise self.source.unsupported(node.target, "a loop over several names", "use one index")
        name = node.target.id
        if name in self.frame.assigned or name in self.frame.fixed:
            raise self.source.unsupported(
                node.target,
                f"the loop index '{name}' is also assigned, or a parameter or an outer index",
                "give the loop an index of its own",
            )
        found = read_range(self.expressions, node.iter)
        index = self.body.index_name(name)
        self.frame.fixed[name] = "loop index"
        self.frame.indices.add(index)
        self.frame.blocks.append({name: values.integer(found.value(index))})
        lowers, uppers = found.bounds(index)
        body = self.block(node.body)
        self.frame.blocks.pop()
        self.frame.indices.discard(index)
        del self.frame.fixed[name]
        self.body.active.remove(index)
        return [Loop(index, lowers, uppers, body, self.source, node)] if body else []

    # ------------------------------------------------------------------------------ conditions

    def _if(self, node: ast.If) -> list[Node]:
        condition = self.expressions.condition(node.test)
        if condition is None:
            return self._data_if(node)
        if condition == TRUE:
            return self.block(node.body)
        if condition == FALSE:
            return self.block(node.orelse)
        then = self.block(node.body)
        otherwise = self.block(node.orelse)
        return [Branch(separate(condition), negate(condition), then, otherwise)]

    def _data_if(self, node: ast.If) -> list[Node]:
        """A condition on data becomes a bool; assignments under it keep the old value where it
        is false. What the branches read is read in any case."""
        split = self._split_test(node)
        if split is not None:
            return self._if(split)
        key = hidden_name(self.frame.prefix, "if", node.test)
        self.body.knowledge.types[key] = (DType.bool, False)
        test = self.expressions.truth(node.test)
        holds = Var(name=key, dtype=DType.bool)
        with self.expressions.data_guarded(holds):
            then = self.block(node.body)
        with self.expressions.data_guarded(Unary(op="not", x=holds)):
            otherwise = self.block(node.orelse)
        first = Assign(key, None, test, self.source, node.test)
        return [first, Branch(FALSE, FALSE, then, otherwise, test=key)]

    def _split_test(self, node: ast.If) -> ast.If | None:
        """Affine parts of a condition first, as an `if` of their own: what is under it then really
        runs only where they hold. They have no effects, so their order does not matter.

        Rewrite: ``if d and a: B else: C`` → ``if a: (if d: B else: C) else: C``;
            ``if d or a: B else: C`` → ``if a: B else: (if d: B else: C)``.
        """
        test = node.test
        if not isinstance(test, ast.BoolOp):
            return None
        is_affine = [self.expressions.condition(v) is not None for v in test.values]
        if not any(is_affine):
            return None
        first = _join(test.op, [v for v, a in zip(test.values, is_affine) if a], test)
        rest = _join(test.op, [v for v, a in zip(test.values, is_affine) if not a], test)
        inner: list[ast.stmt] = [ast.copy_location(ast.If(rest, node.body, node.orelse), node)]
        if isinstance(test.op, ast.And):
            return ast.copy_location(ast.If(first, inner, node.orelse), node)
        return ast.copy_location(ast.If(first, node.body, inner), node)

    # ------------------------------------------------------------------------------ calls

    def _call(self, node: ast.Call) -> list[Node]:
        target = self.expressions.callee(node.func)
        parsed = getattr(target, "__nestor_kernel__", None)
        if parsed is None:
            raise self.source.unsupported(
                node,
                f"'{ast.unparse(node.func)}' cannot be called as a statement",
                "call a @nestor.kernel, or assign the result of a function",
            )
        if len(self.body.calls) > MAX_INLINE_DEPTH:
            raise self.source.unsupported(node, "calls nested too deeply", "use loops")
        prefix = hidden_name(self.frame.prefix, parsed.source.name, node) + "."
        frame = Frame(parsed.source, prefix, self.body.knowledge)
        out: list[Node] = []
        bind_call(self, node, parsed.parameters, frame, out)
        frame.indices |= self.frame.indices
        before, self.body.data_guard = self.body.data_guard, self.expressions.data_guard
        out += self.body.function(frame)
        self.body.data_guard = before
        return out

    def pass_scalar(
        self, parameter: Parameter, value: Value, frame: Frame, at: ast.AST, out: list[Node]
    ) -> None:
        """Give a scalar parameter of an inlined kernel its value."""
        if not parameter.weak:
            value = Value(values.convert(value, parameter.dtype))
        elif not value.weak or value.dtype is not DType.f64:
            value = Value(values.convert(value, DType.f64), weak=True)
        held = self._hold(value, at, out)
        if parameter.name in frame.assigned:
            key = frame.hold(parameter.name)
            self.body.knowledge.demoted.add(key)
            self.body.knowledge.note_type(key, held)
            dtype, _ = self.body.knowledge.types[key]
            out.append(Assign(key, None, values.convert(held, dtype), self.source, at))
        else:
            frame.bind(parameter.name, held)


def _as_load(target: ast.expr) -> ast.expr:
    """The expression that reads what ``target`` writes."""
    match target:
        case ast.Name(id=name):
            return ast.copy_location(ast.Name(name, ast.Load()), target)
        case ast.Subscript(value=value, slice=index):
            return ast.copy_location(ast.Subscript(value, index, ast.Load()), target)
        case _:
            return target


def _join(op: ast.boolop, parts: list[ast.expr], at: ast.expr) -> ast.expr:
    return parts[0] if len(parts) == 1 else ast.copy_location(ast.BoolOp(op, parts), at)
