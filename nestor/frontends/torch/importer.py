"""Drive an import: export, walk the graph, collect inputs, weights, outputs and mutations."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from nestor.errors import InputError, Unsupported
from nestor.frontends.torch import dtypes, exporting, trees
from nestor.frontends.torch.context import Context, dim_from_torch
from nestor.frontends.torch.equal_symbols import merge_symbols
from nestor.frontends.torch.extern import emit_extern
from nestor.frontends.torch.model import ImportedModel, InputSpec, Mutation, OutputSpec, Owner
from nestor.frontends.torch.origins import origin_of
from nestor.frontends.torch.outputs import emit_output
from nestor.frontends.torch.prune import prune_program
from nestor.frontends.torch.registry import NoRule
from nestor.frontends.torch.rules import RULES
from nestor.frontends.torch.sizes import affine_from_torch, size_from_torch
from nestor.frontends.torch.value import Value, of_tensor, scalar
from nestor.ir.affine import Affine, affine
from nestor.ir.program import Program, Role, Symbol


def import_model(
    model: nn.Module | ExportedProgram | Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    name: str = "model",
) -> ImportedModel:
    """Export ``model`` on example inputs and lower it to a Program.

    Args:
        model: a module, an exported program (``args`` are then not needed), or a function.
        args, kwargs: example inputs; values that are not tensors become part of the program.
        dynamic_shapes: as in ``torch.export.export``; each dynamic size becomes a symbol.
        name: the Program's name.
    Raises: InputError for bad example inputs, ExportError when ``torch.export`` fails, Unsupported
        for what the IR cannot hold.
    """
    start = time.perf_counter()
    if isinstance(model, ExportedProgram):
        module, exported = None, model
    else:
        exporting.check_example_inputs(model, args, kwargs or {})
        module = exporting.as_module(model)
        exported = exporting.export_model(module, args, dict(kwargs or {}), dynamic_shapes)
    seconds = time.perf_counter() - start
    refused: frozenset[str] = frozenset()
    while True:
        start = time.perf_counter()
        decomposed = exporting.decompose(exported, refused)
        seconds += time.perf_counter() - start
        importer = _Importer(module, exported, decomposed, name)
        result = importer.run(seconds)
        # A call that its rule does not cover may still be expressed by simpler operators.
        again = exporting.decomposable(importer.refused - refused)
        if not again:
            return result
        refused |= again


class _Importer:
    """One import. ``values`` maps graph nodes to what stands for them."""

    def __init__(
        self,
        module: nn.Module | None,
        original: ExportedProgram,
        exported: ExportedProgram,
        name: str,
    ):
        self.module, self.original, self.exported, self.name = module, original, exported, name
        self.symbols = _symbols(exported)
        self.ctx = Context(self.symbols)
        self.values: dict[Any, Any] = {}
        self.inputs: list[InputSpec] = []
        self.leaves: list[trees.Tree] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.owners: dict[str, Owner] = {}
        self.refused: set[str] = set()

    def run(self, seconds: float) -> ImportedModel:
        """Import everything."""
        self._placeholders()
        for node in self.exported.graph.nodes:
            if node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "get_attr":
                self.values[node] = getattr(self.exported.graph_module, str(node.target))
        outputs, leaves, mutated = self._outputs()
        for name, tensor in self.ctx.constants.values():
            self.weights[name], self.owners[name] = tensor, Owner("", None, "")
        program = Program(
            name=self.name,
            symbols=tuple(self.symbols.values()),
            tensors=tuple(self.ctx.tensors.values()),
            statements=tuple(self.ctx.statements),
        )
        merged = self.ctx.equal.mapping()
        program = prune_program(merge_symbols(program, merged))
        kept = {t.name for t in program.tensors}
        spec = self.exported.call_spec
        return ImportedModel(
            program=program,
            inputs=tuple(i.renamed(merged) for i in self.inputs),
            outputs=tuple(o.renamed(merged) for o in outputs),
            in_tree=trees.describe_tree(spec.in_spec, self.leaves),
            out_tree=trees.describe_tree(spec.out_spec, leaves),
            weights={n: t for n, t in self.weights.items() if n in kept},
            owners={n: o for n, o in self.owners.items() if n in kept},
            mutated=tuple(replace(m, value=m.value.renamed(merged)) for m in mutated),
            symbols=self._bindings(program),
            sizes=_example_sizes(self.exported, program),
            in_spec=spec.in_spec,
            out_spec=spec.out_spec,
            export_seconds=seconds,
        )

    # -------------------------------------------------------------------------------- inputs

    def _placeholders(self) -> None:
        signature = self.exported.graph_signature
        specs = {s.arg.name: s for s in signature.input_specs}
        buffers = set(signature.buffers_to_mutate.values())
        paths = _leaf_paths(self.exported)
        for node in self.exported.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            if spec.kind == InputKind.USER_INPUT:
                self._user_input(node, spec, paths[len(self.leaves)])
            else:
                self._weight(node, spec, "state" if spec.target in buffers else None)

    def _user_input(self, node: Any, spec: Any, path: str) -> None:
        meta = node.meta.get("val")
        if isinstance(meta, torch.Tensor):
            shape = tuple(affine_from_torch(s) for s in meta.shape)
            exporting.check_tensor(path, meta)
            name = self.ctx.tensor(node.name, shape, dtypes.from_torch(meta.dtype), "input")
            self.leaves.append(trees.tensor_leaf(len(self.inputs)))
            self.inputs.append(InputSpec(name=name, path=path, dtype=meta.dtype, shape=shape))
            self.values[node] = of_tensor(
                name, [(s,) for s in shape], dtypes.from_torch(meta.dtype)
            )
            return
        if isinstance(meta, torch.SymInt | torch.SymFloat):
            raise Unsupported(f"{path} is a dynamic number; only tensor sizes may be dynamic")
        value = getattr(spec.arg, "value", meta)
        try:
            self.leaves.append(trees.constant_leaf(value))
        except TypeError as error:
            raise InputError(
                f"{path} is neither a tensor nor a number or string: {error}"
            ) from None
        self.values[node] = value

    def _weight(self, node: Any, spec: Any, role: Role | None) -> None:
        target = str(spec.target)
        tensor, owner = self._find_weight(spec.kind, target)
        if not isinstance(tensor, torch.Tensor):
            self.values[node] = tensor
            return
        path = f"weight {target!r}"
        exporting.check_tensor(path, tensor)
        dtype = dtypes.from_torch(tensor.dtype)
        if spec.kind == InputKind.CONSTANT_TENSOR:
            role = role or "constant"
            if tensor.dim() == 0 and owner.module is None:
                self.values[node] = scalar(tensor.item(), dtype)
                return
        shape = tuple(affine(s) for s in tensor.shape)
        name = self.ctx.tensor(node.name, shape, dtype, role or "parameter")
        self.weights[name], self.owners[name] = tensor, owner
        self.values[node] = of_tensor(name, [(s,) for s in shape], dtype)

    def _find_weight(self, kind: Any, target: str) -> tuple[Any, Owner]:
        """The live tensor under ``target``; the module's own where there is one."""
        if self.module is not None:
            path, _, attribute = target.rpartition(".")
            try:
                holder = self.module.get_submodule(path)
            except AttributeError:
                holder = None
            value = None if holder is None else getattr(holder, attribute, None)
            if isinstance(value, torch.Tensor):
                return value, Owner(target, holder, attribute)
        exported = self.exported
        value = exported.state_dict.get(target)
        if value is None:
            value = exported.constants.get(target)
        return value, Owner(target, None, "")

    # ------------------------------------------------------------------------------- operators

    def _call(self, node: Any) -> Any:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]
        meta = node.meta.get("val")
        if isinstance(meta, torch.SymInt):
            return affine_or_size(meta)
        if isinstance(meta, bool | int | float | torch.SymBool | torch.SymFloat):
            return meta
        target = str(node.target)
        if exporting.is_ignored(target):
            return None
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise Unsupported(
                f"{target} at {origin_of(node)} is control flow on tensors;"
                " use torch.where or a mask"
            )
        ctx = self.ctx
        ctx.origin, ctx.hint, ctx.meta = origin_of(node), node.name, meta
        ctx.used = frozenset(
            u.args[1] for u in node.users if u.target is operator.getitem and u.users
        )
        args = torch.fx.node.map_arg(node.args, self._argument)
        kwargs = torch.fx.node.map_arg(node.kwargs, self._argument)
        if target in RULES:
            mark = len(ctx.statements)
            try:
                return RULES[target].function(ctx, *args, **kwargs)
            except NoRule:
                del ctx.statements[mark:]
                self.refused.add(target)
            except Unsupported as error:
                raise Unsupported(f"{target} at {ctx.origin}: {error}") from error
        return emit_extern(ctx, node.target, args, kwargs)

    def _argument(self, node: Any) -> Any:
        return self.values[node]

    # --------------------------------------------------------------------------------- outputs

    def _outputs(self) -> tuple[list[OutputSpec], list[trees.Tree], list[Mutation]]:
        signature = self.exported.graph_signature
        node = next(n for n in self.exported.graph.nodes if n.op == "output")
        eager = next(n for n in self.original.graph.nodes if n.op == "output").args[0]
        # Mutations stand before the results; the original graph may lack them.
        originals = list(eager)[-_user_outputs(signature) :] if _user_outputs(signature) else []
        outputs: list[OutputSpec] = []
        leaves: list[trees.Tree] = []
        mutated: list[Mutation] = []
        seen = 0
        for spec, result in zip(signature.output_specs, node.args[0], strict=True):
            self.ctx.origin = None
            if spec.kind == OutputKind.USER_OUTPUT:
                reference = originals[seen] if seen < len(originals) else result
                seen += 1
                leaves.append(self._result(result, reference, outputs))
            elif spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
                mutated.append(self._mutation(spec, result))
            else:
                raise Unsupported(f"the model has an output of kind {spec.kind.name}")
        return outputs, leaves, mutated

    def _result(self, result: Any, reference: Any, outputs: list[OutputSpec]) -> trees.Tree:
        value = self.values[result] if isinstance(result, torch.fx.Node) else result
        if isinstance(value, Value):
            meta = reference.meta.get("val") if isinstance(reference, torch.fx.Node) else None
            if not isinstance(meta, torch.Tensor):
                meta = result.meta["val"]
            outputs.append(emit_output(self.ctx, value, meta))
            return trees.tensor_leaf(len(outputs) - 1)
        if isinstance(value, Affine):
            if not value.is_const:
                raise Unsupported("the model returns a symbolic size; return it as a tensor")
            value = value.const
        try:
            return trees.constant_leaf(value)
        except TypeError as error:
            raise Unsupported(f"the model returns {error}; return tensors and numbers") from None

    def _mutation(self, spec: Any, result: Any) -> Mutation:
        value = self.values[result]
        output = emit_output(self.ctx, value, result.meta["val"], fresh=True)
        if spec.kind == OutputKind.USER_INPUT_MUTATION:
            return Mutation(
                kind="input", target=str(spec.target), value=output, source=str(spec.target)
            )
        source = next((n for n, o in self.owners.items() if o.path == spec.target), "")
        return Mutation(kind="buffer", target=str(spec.target), value=output, source=source)

    def _bindings(self, program: Program) -> dict[str, tuple[str, int]]:
        """For each symbol an input dimension that is exactly it."""
        found: dict[str, tuple[str, int]] = {}
        for spec in self.inputs:
            for dim, size in enumerate(spec.shape):
                if len(size.terms) == 1 and size.const == 0 and size.terms[0][1] == 1:
                    atom = size.terms[0][0]
                    if isinstance(atom, str):
                        found.setdefault(atom, (spec.name, dim))
        for symbol in program.symbols:
            if symbol.name not in found:
                raise Unsupported(
                    f"no input dimension is exactly the dynamic size {symbol.name}; make one so"
                )
        return found


def affine_or_size(value: Any) -> Any:
    """An ``Affine`` where possible, else the symbolic integer itself (meta has the sizes)."""
    size = size_from_torch(value)
    out = size.as_affine()
    if out is None:
        return value
    return out.const if out.is_const else out


def _symbols(exported: ExportedProgram) -> dict[str, Symbol]:
    """Shape symbols of the graph's inputs with their ranges."""
    names: dict[str, None] = {}
    for node in exported.graph.nodes:
        meta = node.meta.get("val")
        if node.op == "placeholder" and isinstance(meta, torch.Tensor):
            for size in meta.shape:
                for dim in dim_from_torch(size):
                    names.update(dict.fromkeys(sorted(dim.variables())))
    ranges = {str(k): v for k, v in exported.range_constraints.items()}
    out = {}
    for name in names:
        lower, upper = 0, None
        if name in ranges:
            # Export takes sizes 0 and 1 for special, and allows them at run time all the same.
            lower = int(ranges[name].lower)
            lower = 0 if lower <= 2 else lower
            upper = _finite(ranges[name].upper)
        out[name] = Symbol(name=name, lower=lower, upper=upper)
    return out


def _example_sizes(exported: ExportedProgram, program: Program) -> dict[str, int]:
    """What the symbols of ``program`` were in the example that was traced."""
    wanted = {s.name for s in program.symbols}
    found: dict[str, int] = {}
    for node in exported.graph.nodes:
        meta = node.meta.get("val")
        if node.op == "placeholder" and isinstance(meta, torch.Tensor):
            for size in meta.shape:
                if isinstance(size, torch.SymInt) and str(size.node.expr) in wanted:
                    hint = size.node.hint
                    if hint is not None:
                        found[str(size.node.expr)] = int(hint)
    return found


def _finite(bound: Any) -> int | None:
    try:
        value = int(bound)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None
    return None if value >= 1 << 62 else value


def _user_outputs(signature: Any) -> int:
    return sum(1 for s in signature.output_specs if s.kind == OutputKind.USER_OUTPUT)


def _leaf_paths(exported: ExportedProgram) -> list[str]:
    """The path of each user input, in flattened order."""
    spec = exported.call_spec.in_spec
    count = spec.num_leaves
    args, kwargs = torch.utils._pytree.tree_unflatten(list(range(count)), spec)
    return [path for path, _ in exporting.flat_paths(args, kwargs)]
