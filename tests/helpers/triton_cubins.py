"""Compile the kernels of all cases for several architectures and print what they take, as JSON:
``python -m tests.helpers.triton_cubins``. A process of its own: Triton compiles or interprets."""

from __future__ import annotations

import json

from nestor.codegen.triton import emit_kernel
from nestor.codegen.triton.cubin import CubinJob, compile_cubin
from nestor.passes.gpu_schedule import gpu_schedule, warps_of
from nestor.passes.knobs import Choices, Value
from nestor.passes.nest import apply_schedule
from nestor.target.gpu import parse_gpu_target
from tests.helpers.triton_cases import CASES, kernels_of

CAPABILITIES = (80, 86, 89, 90, 100, 120)

BOXED = ", in boxes"
KNOBS: dict[str, Value] = {"persistent": 1, "descriptors": 1, "specialize": 1, "skip": 1}
PRODUCTS = ("halves", "batched", "float8", "documents")
"""Cases that are compiled once more with these knobs."""


def main() -> None:
    """See the module."""
    found = []
    for name, case in (*CASES.items(), *((f"{n}{BOXED}", CASES[n]) for n in PRODUCTS)):
        for number, fused in enumerate(kernels_of(*case)):
            for capability in CAPABILITIES:
                schedule = gpu_schedule(fused, Choices(KNOBS if BOXED in name else {}), capability)
                warps = warps_of(schedule)
                nest = apply_schedule(fused.kernel, schedule)
                kernel = emit_kernel(nest, warps=warps)
                job = CubinJob(
                    kernel=kernel,
                    capability=capability,
                    shared_bytes=parse_gpu_target(f"sm_{capability}").shared_bytes,
                    warps=warps.count,
                    stages=warps.stages,
                )
                made = compile_cubin(job)
                found.append(
                    {
                        "kernel": f"{name} {number}",
                        "capability": capability,
                        "shared": made.shared_bytes,
                        "registers": made.registers,
                        "spilled": made.spilled_bytes,
                        "scratch": made.scratch_bytes,
                        "boxes": kernel.source.count("make_tensor_descriptor"),
                        "bytes": len(made.code),
                    }
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
