"""The outside of a linked model: inputs, outputs, symbols, mutated buffers, trees."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nestor.errors import Unsupported
from nestor.ir.affine import Affine
from nestor.linking import SlotTable, dim_of
from nestor.runtime.dims import Dim, DimExpr
from nestor.runtime.manifest import (
    InputSpec,
    Mutation,
    OutputSpec,
    SymbolBinding,
    TensorSlot,
    WeightSource,
)

if TYPE_CHECKING:
    from nestor.frontends.torch import model as frontend


class InterfaceBuilder:
    """Turns what the frontend knows of a call into fields of the manifest."""

    def __init__(self, imported: frontend.ImportedModel, table: SlotTable):
        self.imported = imported
        self._slots = list(table.slots)
        self._slot_of = dict(table.slot_of)
        self._inputs: list[InputSpec] = []
        self._position: dict[str, int] = {}
        self.extra_weights: tuple[WeightSource, ...] = ()
        self.extra_states: dict[str, Any] = {}
        arguments, keywords = self.imported.in_tree["items"]
        self.input_tree = {
            "args": [self._input(t) for t in arguments["items"]],
            "kwargs": [
                [k, self._input(t)] for k, t in zip(keywords.get("keys", ()), keywords["items"])
            ],
        }
        self.inputs = tuple(self._inputs)
        self.argument_names = _argument_names(imported, len(self.input_tree["args"]))
        self._outputs: list[OutputSpec] = []
        self.output_tree = self._output(imported.out_tree)
        self.outputs = tuple(self._outputs)
        self.mutations = tuple(self._mutation(m) for m in imported.mutated)
        self.symbols = tuple(self._symbol(s) for s in imported.program.symbols)
        self.slots = tuple(self._slots)

    def _input(self, tree: dict[str, Any]) -> Any:
        kind = tree["type"]
        if kind == "tensor":
            spec = self.imported.inputs[tree["index"]]
            self._position[spec.name] = len(self._inputs)
            self._inputs.append(InputSpec(name=spec.name, slot=self._input_slot(spec)))
        elif kind in ("const", "none"):
            name = f"constant{len(self._inputs)}"
            self._inputs.append(InputSpec(name=name, kind="constant", constant=tree.get("value")))
        else:
            return _branch(tree, self._input)
        return {"leaf": len(self._inputs) - 1}

    def _input_slot(self, spec: frontend.InputSpec) -> int:
        """The slot of an input; one that the program ignores gets a slot to be checked by."""
        known = self._slot_of.get(spec.name)
        if known is not None:
            return known
        from nestor.frontends.torch import dtypes

        slot = TensorSlot(
            name=spec.name,
            dtype=dtypes.from_torch(spec.dtype).value,
            shape=tuple(dim_of(e) for e in spec.shape),
            role="input",
        )
        return self._add_slot(slot)

    def _add_slot(self, slot: TensorSlot) -> int:
        self._slot_of[slot.name] = len(self._slots)
        self._slots.append(slot)
        return len(self._slots) - 1

    def _output(self, tree: dict[str, Any]) -> Any:
        kind = tree["type"]
        if kind == "tensor":
            self._outputs.append(self._tensor_output(self.imported.outputs[tree["index"]]))
        elif kind in ("const", "none"):
            self._outputs.append(OutputSpec(kind="constant", constant=tree.get("value")))
        else:
            return _branch(tree, self._output)
        return {"leaf": len(self._outputs) - 1}

    def _tensor_output(self, spec: frontend.OutputSpec) -> OutputSpec:
        slot = self._slot_of[spec.tensor]
        sizes = [product(factors) for factors in spec.memory_shape]
        is_plain = spec.permutation == tuple(range(len(sizes)))
        if is_plain and tuple(sizes) == self._slots[slot].shape:
            if spec.tensor in self._position:
                return OutputSpec(kind="input", input=self._position[spec.tensor])
            return OutputSpec(slot=slot)
        strides: list[Dim] = [1] * len(sizes)
        for d in range(len(sizes) - 2, -1, -1):
            strides[d] = multiply(strides[d + 1], sizes[d + 1])
        return OutputSpec(
            slot=slot,
            shape=tuple(sizes[p] for p in spec.permutation),
            strides=tuple(strides[p] for p in spec.permutation),
        )

    def _mutation(self, mutation: frontend.Mutation) -> Mutation:
        source = self._slot_of[mutation.value.tensor]
        if mutation.kind == "input":
            target = self._slot_of[mutation.target]
            self._slots[target] = replace(self._slots[target], role="inout")
            return Mutation(source=source, target=target)
        if mutation.source and mutation.source in self._slot_of:
            target = self._slot_of[mutation.source]
            self._slots[target] = replace(self._slots[target], role="state")
            return Mutation(source=source, target=target)
        return Mutation(source=source, target=self._unread_state(mutation, source))

    def _unread_state(self, mutation: frontend.Mutation, source: int) -> int:
        """A slot for a buffer that the model writes but never reads."""
        owner = next((o for o in self.imported.owners.values() if o.path == mutation.target), None)
        current = owner.current() if owner is not None else None
        if current is None:
            raise Unsupported(
                f"buffer '{mutation.target}' is written by the model but cannot be found in it\n"
                "fix: register it with register_buffer"
            )
        slot = replace(self._slots[source], name=mutation.target, role="state", alias_of=None)
        position = self._add_slot(slot)
        self.extra_weights += (WeightSource(slot=position, key=mutation.target, how="state"),)
        self.extra_states[mutation.target] = current.detach()
        return position

    def _symbol(self, symbol: Any) -> SymbolBinding:
        name, dimension = self.imported.symbols[symbol.name]
        return SymbolBinding(
            name=symbol.name,
            input=self._position[name],
            dimension=dimension,
            lower=symbol.lower,
            upper=symbol.upper,
        )


def _argument_names(imported: frontend.ImportedModel, count: int) -> tuple[str, ...]:
    """Names under which positional arguments may be given as well; empty where unknown."""
    names = getattr(imported, "argument_names", ())
    return tuple(names) if len(names) == count else ()


def _branch(tree: dict[str, Any], visit: Any) -> Any:
    """An inner node of the frontend's tree in the runtime's form."""
    items = [visit(t) for t in tree["items"]]
    match tree["type"]:
        case "tuple":
            return {"tuple": items}
        case "list":
            return {"list": items}
        case "dict" if tree["class"] in ("", "collections:OrderedDict"):
            return {"dict": [list(pair) for pair in zip(tree["keys"], items)]}
        case "dict":
            return {"object": tree["class"], "fields": _fields(tree["keys"], items)}
        case "namedtuple" | "object":
            return {"object": tree["class"], "fields": _fields(tree["fields"], items)}
    raise Unsupported(
        f"arguments or results of class {tree.get('class')} are not understood\n"
        "fix: pass tensors in tuples, lists, dicts, named tuples or dataclasses"
    )


def _fields(names: list[Any], items: list[Any]) -> list[list[Any]]:
    return [[n, i] for n, i in zip(names, items)]


def product(factors: tuple[Affine, ...]) -> Dim:
    """A size that is a product of affine factors."""
    size: Dim = 1
    for factor in factors:
        size = multiply(size, dim_of(factor))
    return size


def multiply(a: Dim, b: Dim) -> Dim:
    """The product of two sizes, as a sum of monomials. Raises: ``Unsupported`` for quotients."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    x, y = (DimExpr(const=d) if isinstance(d, int) else d for d in (a, b))
    if x.quotients or y.quotients:
        if a == 1:
            return b
        if b == 1:
            return a
        raise Unsupported("an output whose size is a product with a quotient of symbols")
    terms: dict[str, int] = {}
    for n, f in (*x.terms, ("", x.const)):
        for m, g in (*y.terms, ("", y.const)):
            name = "*".join(sorted(filter(None, (*n.split("*"), *m.split("*")))))
            terms[name] = terms.get(name, 0) + f * g
    const = terms.pop("", 0)
    left = tuple((n, f) for n, f in sorted(terms.items()) if f)
    return DimExpr(const=const, terms=left) if left else const
