"""Call overhead: what a call costs beside the native code.

``python -m benchmarks.overhead`` runs a model whose one kernel does nothing, with one input and one
output, and prints the median time of a call and of the bare native call [µs]. The kernel is
compiled with llvmlite alone, so that nothing of the compiler is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LIMIT_US = 20.0
_KERNEL = "define i32 @kernel(ptr %args, ptr %symbols, ptr %services) { ret i32 0 }"
_ENTRY = """
define i32 @entry(ptr %table, ptr %tensors, ptr %symbols, ptr %services) {
  %f = load ptr, ptr %table
  %r = call i32 %f(ptr %tensors, ptr %symbols, ptr %services)
  ret i32 %r
}
"""


def compile_object(text: str) -> bytes:
    """LLVM IR → object code."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic")
    return bytes(machine.emit_object(llvm.parse_assembly(text)))


def make_model(shape: tuple[int, ...], weights: int = 0) -> Any:
    """An executable of one empty kernel that watches ``weights`` parameters."""
    from nestor.runtime import manifest as m
    from nestor.runtime.executable import Executable
    from nestor.runtime.weights import Watched, WeightWatcher

    target = m.TargetInfo(triple="x86_64-unknown-linux-gnu", features=("sse2",))
    slots = (
        m.TensorSlot(name="x", dtype="f32", shape=shape, role="input"),
        m.TensorSlot(name="y", dtype="f32", shape=shape, role="output"),
    )
    function = m.FunctionRef(object="kernel", name="kernel")
    entry = m.FunctionRef(object="entry", name="entry")
    manifest = m.Manifest(
        name="empty", target=target, slots=slots, functions=(function,),
        calls=(m.KernelCall(function=0, tensors=(0, 1)),),
        segments=(m.Segment(first=0, last=1, entry=entry),),
        inputs=(m.InputSpec(name="x", slot=0),), outputs=(m.OutputSpec(slot=1),),
    )  # fmt: skip
    m.check_manifest(manifest)
    objects = {"kernel": compile_object(_KERNEL), "entry": compile_object(_ENTRY)}
    if not weights:
        return Executable(manifest, objects)
    import torch

    layers = [torch.nn.Linear(64, 64, bias=False) for _ in range(weights)]
    watcher = WeightWatcher([Watched(n._parameters, "weight", n.weight) for n in layers])
    model = Executable(manifest, objects, watcher=watcher)
    model.__dict__["layers"] = layers
    return model


def median_us(call: Callable[[], object], repeats: int = 30, inner: int = 200) -> float:
    """Median over ``repeats`` of the mean time of ``inner`` calls [µs]."""
    times = []
    gc.disable()
    try:
        for _ in range(repeats):
            clock = time.perf_counter()
            for _ in range(inner):
                call()
            times.append((time.perf_counter() - clock) / inner * 1e6)
    finally:
        gc.enable()
    return statistics.median(times)


def measure() -> dict[str, float]:
    """Median call times [µs], by what is called."""
    import torch

    shape = (1, 16)
    model, array, tensor = make_model(shape), np.zeros(shape, np.float32), torch.zeros(shape)
    watching = make_model(shape, weights=200)
    strided = torch.zeros(16, 1).t()
    return {
        "NumPy array": median_us(lambda: model(array)),
        "PyTorch tensor": median_us(lambda: model(tensor)),
        "transposed tensor": median_us(lambda: model(strided)),
        "200 watched weights": median_us(lambda: watching(tensor)),
        "torch.relu": median_us(lambda: torch.relu(tensor)),
    }


def main() -> None:
    """Print the table, or JSON with ``--json``; fail above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    found = measure()
    if parser.parse_args().json:
        print(json.dumps({name: round(value, 2) for name, value in found.items()}))
    else:
        for name, value in found.items():
            print(f"{name:24}{value:8.2f} µs")
    if found["NumPy array"] > LIMIT_US or found["PyTorch tensor"] > LIMIT_US:
        raise SystemExit(f"a call costs more than {LIMIT_US:g} µs")


if __name__ == "__main__":
    main()
