"""The manifest: everything about a compiled model but its code and its weights, as JSON.

Written by the compiler, read by ``Executable``. ``Manifest.from_json`` checks types and every
reference between parts, so that what it returns can be run without further checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal, Union

from nestor.errors import ArtifactError
from nestor.runtime import codec
from nestor.runtime.dims import Dim, dim_symbols, evaluate, is_solvable

FORMAT_VERSION = 1

ITEM_BYTES = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "f8e5m2": 1,
    "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1, "bool": 1,
}  # fmt: skip
"""Size of an element in memory [bytes], by dtype name."""

Role = Literal["input", "output", "inout", "parameter", "constant", "state", "temp"]
WEIGHT_ROLES = ("parameter", "constant", "state")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInfo:
    """The machine that the code is for; ``features`` are names in ``/proc/cpuinfo`` or LLVM's."""

    triple: str
    features: tuple[str, ...]
    name: str = ""

    @property
    def is_gpu(self) -> bool:
        """Whether kernels run on a GPU."""
        return self.triple.startswith("nvptx")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """One array of the running model: an entry of the ``tensors`` table.

    Attributes:
        shape: logical extents.
        physical: extents in memory, row-major; None: ``shape``, or its permutation.
        permutation: physical dimension p is logical dimension ``permutation[p]`` (eager's stride
            order, e.g. ``(0, 2, 3, 1)`` for channels last); None: row-major or not a permutation.
        alias_of: slot with the same bytes.
        first_use, last_use: positions in ``Manifest.calls`` between which a temp is alive; -1: as
            the calls tell (their union counts when both are there).
        in_blocks: calls see one of the equal parts of the array that ``Manifest.blocks`` counts.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    role: Role
    physical: tuple[Dim, ...] | None = None
    permutation: tuple[int, ...] | None = None
    alias_of: int | None = None
    first_use: int = -1
    last_use: int = -1
    in_blocks: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"unknown dtype '{self.dtype}'")
        order = self.permutation
        if order is not None and sorted(order) != list(range(len(self.shape))):
            raise ValueError(f"{order} is not a permutation of {len(self.shape)} dimensions")

    @property
    def memory_shape(self) -> tuple[Dim, ...]:
        """Extents in memory, outermost first."""
        if self.physical is not None:
            return self.physical
        if self.permutation is not None:
            return tuple(self.shape[p] for p in self.permutation)
        return self.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolBinding:
    """A shape symbol and where its value is read: a dimension of a flat input.

    ``dimension`` None: the input itself is the integer. The size there must be linear in the
    symbol alone (``N`` or ``2*N + 1``).
    """

    name: str
    input: int
    dimension: int | None
    lower: int = 1
    upper: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionRef:
    """A function of an object; ``object`` is the digest that names the object."""

    object: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCall:
    """Call ``functions[function]`` on slots and symbols (positions)."""

    function: int
    tensors: tuple[int, ...]
    symbols: tuple[int, ...] = ()
    name: str = ""
    origin: str = ""
    kind: Literal["kernel"] = "kernel"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternCall:
    """Call a PyTorch operator through the runner that the API injects.

    ``arguments`` is any JSON; the runner interprets it. ``inputs``/``outputs`` are slots, stored
    row-major.
    """

    operator: str
    arguments: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    origin: str = ""
    kind: Literal["extern"] = "extern"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """``calls[first:last]``, all kernels, run by one entry function."""

    first: int
    last: int
    entry: FunctionRef


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLaunch:
    """How a GPU's kernel is started.

    Attributes:
        grid: extents, over ``sizes``, whose product is the number of programs.
        sizes: names of the sizes that it takes behind its tensors, in order.
        checks: whether it takes one more tensor between them, an i32 that it sets where an index
            that is data lies outside its tensor.
        written: positions among its tensors of those that it writes.
        most: programs that are started at most, which then take one turn after the other; 0: each
            has one turn.
        warps: of a program. shared_bytes: of shared memory that a program takes [bytes].
        scratch_bytes: of memory that each program writes descriptors in, given behind the sizes.
        parameters: that its machine code takes, of eight bytes each.
    """

    grid: tuple[Dim, ...]
    written: tuple[int, ...]
    sizes: tuple[str, ...] = ()
    checks: bool = False
    most: int = 0
    warps: int = 4
    shared_bytes: int = 0
    scratch_bytes: int = 0
    parameters: int = 0

    def programs(self, sizes: Sequence[int]) -> int:
        """How many programs are started. Args: sizes: those of its own, in order."""
        turns = prod(evaluate(e, dict(zip(self.sizes, sizes))) for e in self.grid)
        return min(turns, self.most) if self.most else turns


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoop:
    """``calls[first:last]``, kernels of a GPU, run once for each step from 0 up to ``extent``.

    They take the step as a symbol: loop n as the nth after the symbols of the manifest.
    """

    first: int
    last: int
    extent: Dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """All calls run ``count`` times, each time on the next part of the slots ``in_blocks``.

    ``driver`` is the function that does so (``docs/architecture.md``); a thread that runs blocks
    has temps of its own.
    """

    count: int
    driver: FunctionRef


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One flat input.

    ``tensor``: bound to ``slot``. ``integer``: an ``int`` that binds a symbol (``value`` is its
    size expression). ``constant``: must equal ``constant``, the value that the model was compiled
    with. ``ignored``: anything.
    """

    name: str
    kind: Literal["tensor", "integer", "constant", "ignored"] = "tensor"
    slot: int | None = None
    value: Dim | None = None
    constant: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """One flat output.

    ``slot``: the array of a slot; with ``shape``, ``strides`` and ``offset`` [elements] a view of
    it. ``input``: the caller's own object. ``integer``: a size. ``constant``: a JSON value.
    """

    kind: Literal["slot", "input", "integer", "constant"] = "slot"
    slot: int | None = None
    input: int | None = None
    value: Dim | None = None
    constant: Any = None
    shape: tuple[Dim, ...] | None = None
    strides: tuple[Dim, ...] | None = None
    offset: Dim = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """After the calls the bytes of ``source`` are copied to ``target`` (a state or an inout)."""

    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """Which array fills a parameter, constant or state slot.

    ``key`` names it among the weights; ``how``: ``live`` (the caller's own storage, row-major),
    ``packed`` (made of ``parameters`` at compile time), ``constant``, ``state``.
    """

    slot: int
    key: str
    how: Literal["live", "packed", "constant", "state"] = "packed"
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A compiled model. See ``docs/architecture.md`` for the native interface.

    Attributes:
        functions: the function table. launches: of a GPU, how each of them is started.
        calls: in running order; ``segments`` cover its kernels.
        blocks: how often the calls run, if more than once.
        loops: calls that run again and again; apart from each other, in order.
        inputs, input_tree: flat inputs and how (args, kwargs) are flattened (``structure``).
        argument_names: names of the positional arguments, so that they may be given by name.
        outputs, output_tree: flat outputs and how they are put together.
        statistics: JSON for the report.
    """

    name: str
    target: TargetInfo
    slots: tuple[TensorSlot, ...]
    functions: tuple[FunctionRef, ...]
    calls: tuple[Union[KernelCall, ExternCall], ...]
    segments: tuple[Segment, ...]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    symbols: tuple[SymbolBinding, ...] = ()
    weights: tuple[WeightSource, ...] = ()
    mutations: tuple[Mutation, ...] = ()
    input_tree: Any = None
    output_tree: Any = None
    argument_names: tuple[str, ...] = ()
    blocks: Blocks | None = None
    loops: tuple[StepLoop, ...] = ()
    launches: tuple[GpuLaunch, ...] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` gives back an equal manifest."""
        return codec.fields_to_json(self) | {"format_version": self.format_version}

    @classmethod
    def from_json(cls, data: Any, where: str = "manifest") -> Manifest:
        """Build and check.

        Raises:
            ArtifactError: another format version, a malformed field, or a dangling reference.
        """
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{where}: format version {version!r}, this Nestor reads {FORMAT_VERSION}; "
                "compile the model again with this version"
            )
        manifest = codec.from_json(cls, data, where)
        check_manifest(manifest)
        return manifest

    @property
    def object_digests(self) -> tuple[str, ...]:
        """Digests of all objects needed, each once, in order of first use."""
        refs = [*self.functions, *(s.entry for s in self.segments)]
        if self.blocks is not None:
            refs.append(self.blocks.driver)
        return tuple(dict.fromkeys(r.object for r in refs))

    @property
    def externs(self) -> tuple[ExternCall, ...]:
        """Calls of PyTorch operators, in order."""
        return tuple(c for c in self.calls if isinstance(c, ExternCall))


def check_manifest(manifest: Manifest) -> None:
    """Check every reference between parts.

    Raises:
        ArtifactError: the first thing that is wrong, by place.
    """
    _check_slots(manifest)
    _check_calls(manifest)
    _check_interface(manifest)


def _require(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise ArtifactError(f"manifest.{where}: {what}")


def _check_slots(m: Manifest) -> None:
    symbols = {s.name for s in m.symbols}
    _require(len(symbols) == len(m.symbols), "symbols", "a name occurs twice")
    sources = [w.slot for w in m.weights]
    _require(len(set(sources)) == len(sources), "weights", "a slot has two sources")
    for i, slot in enumerate(m.slots):
        where = f"slots[{i}] ({slot.name})"
        used = [dim_symbols(d) for d in (*slot.shape, *slot.memory_shape)]
        _require(
            symbols.issuperset(frozenset().union(*used)), where, "a size names no known symbol"
        )
        _require(
            all(d >= 0 for d in (*slot.shape, *slot.memory_shape) if isinstance(d, int)),
            where, "a negative size",
        )  # fmt: skip
        if slot.role in ("input", "inout", "output") and slot.physical is not None:
            stored = replace(slot, physical=None).memory_shape
            _require(slot.physical == stored, where, f"an {slot.role} with a layout of its own")
        if slot.in_blocks:
            _check_parts(m, slot, where)
        seen, current = {i}, slot.alias_of
        while current is not None:
            _require(0 <= current < len(m.slots), where, "alias of a slot that does not exist")
            _require(current not in seen, where, "aliases form a circle")
            seen.add(current)
            current = m.slots[current].alias_of
        if slot.role in WEIGHT_ROLES and slot.alias_of is None:
            _require(i in sources, where, f"a {slot.role} without weights")
            _require(not any(used), where, "a weight whose size is symbolic")
    for j, source in enumerate(m.weights):
        _require(0 <= source.slot < len(m.slots), f"weights[{j}]", "no such slot")
        _require(m.slots[source.slot].role in WEIGHT_ROLES, f"weights[{j}]", "not a weight's slot")


def _check_parts(m: Manifest, slot: TensorSlot, where: str) -> None:
    """A slot in blocks is an array of the caller's, in equal parts that are each in one piece."""
    ok = slot.role in ("input", "output") and slot.alias_of is None
    _require(ok, where, f"a {slot.role} in blocks")
    outer = slot.memory_shape[0] if slot.memory_shape else None
    count = 0 if m.blocks is None else m.blocks.count
    ok = isinstance(outer, int) and count > 0 and outer % count == 0
    _require(ok, where, "its first dimension is not as many equal parts as there are blocks")


def _check_calls(m: Manifest) -> None:
    if m.blocks is not None:
        _require(m.blocks.count >= 1, "blocks", f"{m.blocks.count} is no number of blocks")
        once = m.externs or m.mutations or m.symbols or len(m.segments) != 1
        _require(not once, "blocks", "only kernels on arrays of fixed sizes run in blocks")
        fixed = not any(s.role in ("state", "inout") for s in m.slots)
        _require(fixed, "blocks", "what calls update is no longer the same for all blocks")
    count = len(m.slots)
    for i, call in enumerate(m.calls):
        where = f"calls[{i}]"
        if isinstance(call, KernelCall):
            _require(0 <= call.function < len(m.functions), where, "no such function")
            known = len(m.symbols) + len(m.loops)
            _require(all(0 <= s < known for s in call.symbols), where, "no such symbol")
            slots = call.tensors
        else:
            slots = (*call.inputs, *call.outputs)
            for slot in slots:
                if 0 <= slot < count:
                    row_major = m.slots[slot].memory_shape == m.slots[slot].shape
                    _require(row_major, where, f"slot {slot} is not row-major")
        _require(all(0 <= s < count for s in slots), where, "no such slot")
    total = len(m.calls)
    for j, segment in enumerate(m.segments):
        _require(0 <= segment.first < segment.last <= total, f"segments[{j}]", "no such calls")
    covered = [i for s in m.segments for i in range(s.first, s.last)]
    is_native = not m.target.is_gpu  # a GPU's kernels are started one by one
    kernels = [i for i, c in enumerate(m.calls) if is_native and isinstance(c, KernelCall)]
    _require(covered == kernels, "segments", "they do not cover the kernels, each once, in order")
    places = [p for s in m.loops for p in (s.first, s.last)]
    inside = (
        is_native is False and places == sorted(places) and all(0 <= p <= total for p in places)
    )
    _require(inside or not places, "loops", "no calls of a GPU's kernels, one loop after the other")
    started = 0 if is_native else len(m.functions)
    _require(len(m.launches) == started, "launches", "not one for each function of a GPU")
    for n, launch in enumerate(m.launches):
        named = frozenset().union(*(dim_symbols(d) for d in launch.grid))
        _require(named <= set(launch.sizes), f"launches[{n}]", "a grid names no size")
        least = min(launch.shared_bytes, launch.scratch_bytes, launch.parameters, launch.most)
        ok = 1 <= launch.warps <= 32 and least >= 0
        _require(ok, f"launches[{n}]", "not what a GPU can start")
        _require(bool(launch.written), f"launches[{n}]", "a kernel that writes nothing")
    firsts = [s.first for s in m.segments]
    _require(firsts == sorted(firsts), "segments", "not in order")


def _check_interface(m: Manifest) -> None:
    own = [i for i, s in enumerate(m.slots) if s.alias_of is None]
    roots = [i for i in own if m.slots[i].role in ("input", "inout")]
    bound = [s.slot for s in m.inputs if s.kind == "tensor"]
    _require(sorted(b for b in bound if b is not None) == roots and None not in bound, "inputs",
             "tensors and input slots do not correspond one to one")  # fmt: skip
    for i, spec in enumerate(m.inputs):
        _require((spec.kind != "integer") or spec.value is not None, f"inputs[{i}]", "no size")
    for symbol in m.symbols:
        where = f"symbols ({symbol.name})"
        _require(0 <= symbol.input < len(m.inputs), where, "no such input")
        spec = m.inputs[symbol.input]
        if symbol.dimension is None:
            _require(spec.kind == "integer", where, "the input is not an integer")
            size = spec.value
        else:
            _require(spec.kind == "tensor" and spec.slot is not None, where, "not a tensor")
            shape = m.slots[spec.slot or 0].shape
            _require(0 <= symbol.dimension < len(shape), where, "no such dimension")
            size = shape[symbol.dimension]
        _require(size is not None and is_solvable(size, symbol.name), where,
                 f"its value cannot be read from the size {size}")  # fmt: skip
    for i, output in enumerate(m.outputs):
        _check_output(m, output, f"outputs[{i}]")
    for i, mutation in enumerate(m.mutations):
        ok = all(0 <= s < len(m.slots) for s in (mutation.source, mutation.target))
        _require(ok, f"mutations[{i}]", "no such slot")
        role = m.slots[mutation.target].role
        _require(role in ("state", "inout"), f"mutations[{i}]", f"the target is a {role}")
        a, b = m.slots[mutation.source], m.slots[mutation.target]
        alike = (a.dtype, a.shape, a.memory_shape, a.permutation) == (
            b.dtype, b.shape, b.memory_shape, b.permutation,
        )  # fmt: skip
        _require(alike, f"mutations[{i}]", "arrays of different dtype, shape or layout")


def _check_output(m: Manifest, output: OutputSpec, where: str) -> None:
    if output.kind == "slot":
        slot = output.slot
        _require(slot is not None and 0 <= slot < len(m.slots), where, "no such slot")
        shape, strides = output.shape, output.strides
        _require((shape is None) == (strides is None), where, "shape and strides come together")
        _require(shape is None or strides is None or len(shape) == len(strides), where,
                 "shape and strides differ in length")  # fmt: skip
    elif output.kind == "input":
        ok = output.input is not None and 0 <= output.input < len(m.inputs)
        _require(ok, where, "no such input")
    elif output.kind == "integer":
        _require(output.value is not None, where, "no size")
    used = [dim_symbols(d) for d in (*(output.shape or ()), *(output.strides or ()), output.offset)]
    if output.value is not None:
        used.append(dim_symbols(output.value))
    names = {s.name for s in m.symbols}
    _require(names.issuperset(frozenset().union(*used)), where, "a size names no known symbol")
