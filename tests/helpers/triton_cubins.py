"""Compile the kernels of all cases for several architectures and print what they take, as JSON:
``python -m tests.helpers.triton_cubins``. A process of its own: Triton compiles or interprets."""

from __future__ import annotations

import json

from nestor.codegen.triton import emit_kernel
from nestor.codegen.triton.cubin import CubinJob, compile_cubin
from nestor.passes.gpu_schedule import gpu_schedule, warps_of
from nestor.passes.nest import apply_schedule
from tests.helpers.triton_cases import CASES, kernels_of

CAPABILITIES = (80, 90, 100)


def main() -> None:
    """See the module."""
    found = []
    for name, case in CASES.items():
        for number, fused in enumerate(kernels_of(*case)):
            schedule = gpu_schedule(fused)
            warps = warps_of(schedule)
            nest = apply_schedule(fused.kernel, schedule)
            kernel = emit_kernel(nest, group=warps.group)
            for capability in CAPABILITIES:
                job = CubinJob(
                    kernel=kernel, capability=capability, warps=warps.count, stages=warps.stages
                )
                made = compile_cubin(job)
                found.append(
                    {
                        "kernel": f"{name} {number}",
                        "capability": capability,
                        "shared": made.shared_bytes,
                        "registers": made.registers,
                        "spilled": made.spilled_bytes,
                        "bytes": len(made.code),
                    }
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
