"""``LoopNest`` → LLVM IR text, and the entry function that calls kernels one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from nestor.codegen.llvm.builder import FunctionBuilder, ModuleBuilder
from nestor.codegen.llvm.context import Context, NestInfo
from nestor.codegen.llvm.nest import emit_node
from nestor.codegen.llvm.prefetch import asking_computes
from nestor.codegen.llvm.streaming import read_roots
from nestor.errors import InternalError
from nestor.ir.affine import Affine
from nestor.ir.expr import Load, loads, walk
from nestor.ir.loopnest import Alloc, Compute, Loop, LoopNest, Node, computes, node_children
from nestor.target.cpu import TRIPLE, CpuTarget

CODEGEN_VERSION = 28
"""Raised whenever the same nest may give other code; part of the key of cached objects."""


def emit_kernel(
    nest: LoopNest, target: CpuTarget, *, function_name: str, fp_contract: bool = True
) -> str:
    """LLVM IR text of a module with ``i32 function_name(ptr args, ptr symbols, ptr services)``.

    The interface is that of ``docs/architecture.md``. Arguments that are different tensors must not
    overlap, unless one is declared ``alias_of`` the other or neither is written.

    Args: nest: explicit loops. target: the CPU. fp_contract: products may be fused into sums.
    Raises: ``InternalError`` for a nest that cannot be code (a symbolic buffer, a grid loop).
    """
    module = ModuleBuilder(target.features)
    info = _nest_info(nest, target, module, function_name, fp_contract)
    header = (
        f"define i32 @{function_name}(ptr noalias readonly %args, ptr noalias readonly %symbols, "
        "ptr %services) nounwind"
    )
    fb = FunctionBuilder(module, header)
    ctx = Context(info, fb)
    ctx.bind_symbols()
    if info.gathers:
        ctx.flag = fb.alloca("i8, align 1", "flag")
        fb.line(f"store i8 0, ptr {ctx.flag}, align 1")
    emit_node(ctx, nest.body)
    if ctx.flag is None:
        fb.line("ret i32 0")
    else:
        flag = fb.effect(f"load i8, ptr {ctx.flag}, align 1", "i8")
        fb.line(f"ret i32 {fb.convert('zext', flag, 'i32').text}")
    module.add_function(fb.finish())
    return f'target triple = "{target.triple}"\n{module.text()}'


def _nest_info(
    nest: LoopNest, target: CpuTarget, module: ModuleBuilder, name: str, fp_contract: bool
) -> NestInfo:
    tensors = {t.name: t for t in nest.tensors}
    roots = {
        t.name: _root(t.name, {u.name: u.alias_of for u in nest.tensors}) for t in nest.tensors
    }
    found = list(computes(nest.body))
    buffers = sorted({b.name for a in _allocs(nest.body) for b in a.buffers})
    clash = set(buffers) & set(tensors)
    if clash:
        raise InternalError(f"kernel {nest.name}: {sorted(clash)} are both buffers and tensors")
    written = {s.target for c in found for s in c.stores}
    read, picked = read_roots(nest.body, roots)
    return NestInfo(
        module=module,
        target=target,
        name=name,
        fp_contract=fp_contract,
        tensors=tensors,
        positions={t.name: i for i, t in enumerate(nest.tensors)},
        symbols=nest.symbols,
        roots=roots,
        written=frozenset(roots[w] for w in written if w in roots),
        metadata=_alias_metadata(module, [*dict.fromkeys(roots.values()), *buffers]),
        inner_dims=_inner_dims(nest.body),
        gathers=any(_depends_on_data(c) for c in found),
        read=read,
        picked=picked,
        asking=asking_computes(found),
    )


def _root(name: str, alias_of: dict[str, str | None]) -> str:
    """The tensor at the end of a chain of aliases (its name even if it is no argument itself)."""
    parent = alias_of.get(name)
    return name if parent is None else _root(parent, alias_of)


def _alias_metadata(module: ModuleBuilder, names: list[str]) -> dict[str, str]:
    """What tells LLVM that different tensors and buffers do not overlap."""
    if not names:
        return {}
    domain = module.metadata("distinct !{{self}}")
    scopes = {n: module.metadata(f"distinct !{{{{self}}, {domain}}}") for n in names}
    out: dict[str, str] = {}
    for name, scope in scopes.items():
        own = module.metadata(f"!{{{scope}}}")
        others = [s for s in scopes.values() if s != scope]
        out[name] = f", !alias.scope {own}"
        if others:
            out[name] += f", !noalias {module.metadata('!{' + ', '.join(others) + '}')}"
    return out


def _allocs(node: Node) -> Iterator[Alloc]:
    if isinstance(node, Alloc):
        yield node
    for child in node_children(node):
        yield from _allocs(child)


def _inner_dims(body: Node) -> dict[str, int]:
    """For each buffer, the dimension that most of its accesses in vector loops run along."""
    votes: dict[str, Counter[int]] = {b.name: Counter() for a in _allocs(body) for b in a.buffers}

    def visit(node: Node, lanes: frozenset[str]) -> None:
        if isinstance(node, Loop) and node.kind == "vector":
            lanes = lanes | {node.index}
        if isinstance(node, Compute) and lanes:
            accesses = [(s.target, s.indices) for s in node.stores]
            accesses += [(x.tensor, x.indices) for e in node.values for x in loads(e)]
            for name, indices in accesses:
                for d, index in enumerate(indices if name in votes else ()):
                    if isinstance(index, Affine) and any(index.coefficient(n) == 1 for n in lanes):
                        votes[name][d] += 1
        for child in node_children(node):
            visit(child, lanes)

    visit(body, frozenset())
    return {name: count.most_common(1)[0][0] for name, count in votes.items() if count}


def _depends_on_data(compute: Compute) -> bool:
    """True if some index is not affine."""
    if any(not isinstance(i, Affine) for s in compute.stores for i in s.indices):
        return True
    return any(
        not isinstance(i, Affine)
        for v in compute.values
        for n in walk(v)
        if isinstance(n, Load)
        for i in n.indices
    )


def emit_entry(
    name: str,
    calls: Sequence[tuple[int, Sequence[int], Sequence[int]]],
    target: CpuTarget | None = None,
) -> str:
    """LLVM IR of ``i32 name(ptr table, ptr tensors, ptr symbols, ptr services)``.

    Args: name: of the function. calls: in order, each (position in ``table``, tensor slots in the
        kernel's argument order, symbol positions in the kernel's symbol order).
        target: for the triple; by default this project's only one.
    Calls stop at the first kernel that returns non-zero, and that is the result.
    """
    lines: list[str] = []
    widest = max((len(slots) for _, slots, _ in calls), default=0)
    most_symbols = max((len(symbols) for _, _, symbols in calls), default=0)
    lines.append(f"  %args = alloca [{max(1, widest)} x ptr], align 16")
    lines.append(f"  %values = alloca [{max(1, most_symbols)} x i64], align 16")
    loaded: dict[str, str] = {}

    def load(array: str, position: int, ty: str) -> str:
        """Read ``array[position]`` once a function."""
        value = f"%{array}{position}"
        if value not in loaded:
            loaded[value] = value
            lines.append(f"  {value}.at = getelementptr i64, ptr %{array}, i64 {position}")
            lines.append(f"  {value} = load {ty}, ptr {value}.at, align 8, !invariant.load !{{}}")
        return value

    for number, (table_index, slots, symbols) in enumerate(calls):
        function = load("table", table_index, "ptr")
        for array, ty, values, source in (
            ("args", "ptr", slots, "tensors"),
            ("values", "i64", symbols, "symbols"),
        ):
            for position, slot in enumerate(values):
                value = load(source, slot, ty)
                at = f"%c{number}.{array}{position}"
                lines.append(f"  {at} = getelementptr i64, ptr %{array}, i64 {position}")
                lines.append(f"  store {ty} {value}, ptr {at}, align 8")
        lines.append(f"  %r{number} = call i32 {function}(ptr %args, ptr %values, ptr %services)")
        lines.append(f"  %ok{number} = icmp eq i32 %r{number}, 0")
        lines.append(f"  br i1 %ok{number}, label %next{number}, label %failed")
        lines.append(f"next{number}:")
    lines.append("  ret i32 0")
    if calls:
        edges = ", ".join(
            f"[ %r{n}, %{'entry' if n == 0 else f'next{n - 1}'} ]" for n in range(len(calls))
        )
        lines += ["failed:", f"  %code = phi i32 {edges}", "  ret i32 %code"]
    body = "\n".join(lines)
    arguments = "ptr noalias %table, ptr noalias %tensors, ptr noalias %symbols, ptr %services"
    return (
        f'target triple = "{target.triple if target else TRIPLE}"\n'
        f"define i32 @{name}({arguments}) nounwind {{\nentry:\n{body}\n}}\n"
    )
