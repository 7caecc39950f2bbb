"""TVM's MetaSchedule on one operator, for ``python -m benchmarks.tuning strategies --tvm PYTHON``.

Runs in an interpreter of its own that has ``apache-tvm`` (and not Nestor): it tunes for so many
seconds of wall-clock time, prints a line of JSON, and then answers each line of standard input with
the time of a call [s], taken over about so many seconds as the line says. Operators are those of
TVM's own collection (channels last for convolutions, which suits it), without the bias of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time

WORKLOADS = {
    "gemm_1024": ("matmul", {"n": 1024, "m": 1024, "k": 1024}),
    "linear_128x768x3072": ("matmul", {"n": 128, "m": 3072, "k": 768}),
    "conv3x3_128_28": (
        "conv2d_nhwc",
        {"N": 1, "H": 28, "W": 28, "CI": 128, "CO": 128, "kernel_size": 3, "padding": 1},
    ),
    "conv1x1_256_64_56": (
        "conv2d_nhwc",
        {"N": 1, "H": 56, "W": 56, "CI": 256, "CO": 64, "kernel_size": 1},
    ),
    "depthwise3x3_96_112": (
        "depthwise_conv2d_nhwc",
        {"N": 1, "H": 112, "W": 112, "C": 96, "kernel_size": 3, "padding": 1},
    ),
    "softmax": ("softmax_mn", {"m": 4352, "n": 4096}),
}


PAUSE_S = 0.03
WARM_UP_S = 0.02
"""Before each sample, as for the others [s]."""


class Spent(Exception):
    """The budget is."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("operator", choices=sorted(WORKLOADS))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what TVM prints must not get between the answers
    os.environ["TVM_NUM_THREADS"] = str(given.threads)

    import numpy as np
    import tvm
    from tvm.ir.utils import derived_object
    from tvm.s_tir import meta_schedule as ms
    from tvm.s_tir.meta_schedule.testing import te_workload
    from tvm.te import create_prim_func

    name, sizes = WORKLOADS[given.operator]
    tensors = getattr(te_workload, name)(**sizes)
    function = create_prim_func(tensors)
    target = tvm.target.Target(
        {"kind": "llvm", "mcpu": _cpu(), "num-cores": given.threads, "opt-level": 3}
    )
    deadline = time.monotonic() + given.seconds
    batches: list[int] = []

    @derived_object
    class Clock(ms.measure_callback.PyMeasureCallback):
        def apply(self, scheduler, task, candidates, built, results):
            batches.append(len(candidates))
            if time.monotonic() >= deadline:
                raise Spent

    database = ms.database.MemoryDatabase()
    with tempfile.TemporaryDirectory() as folder:
        try:
            ms.tune_tir(
                function,
                target,
                folder,
                max_trials_global=100_000,
                num_trials_per_iter=16,
                database=database,
                measure_callbacks=[ms.measure_callback.AddToDatabase(),
                                   ms.measure_callback.UpdateCostModel(), Clock()],
                num_tuning_cores=given.threads,
                seed=1,
            )  # fmt: skip
        except Exception as error:
            if "Spent" not in repr(error) and time.monotonic() < deadline:
                raise
        schedule = ms.tir_integration.compile_tir(database, function, target)
    if schedule is None:
        raise SystemExit("no schedule was found")
    built = tvm.compile(schedule.mod, target=target)
    device, draw = tvm.cpu(), np.random.default_rng(0)
    arrays = []
    for tensor in tensors:
        shape = [int(d) for d in tensor.shape]
        arrays.append(tvm.runtime.tensor(draw.random(shape, np.float32), device))
    built["main"](*arrays)
    found = {"trials": sum(batches), "version": tvm.__version__}
    print(json.dumps(found), file=answers, flush=True)
    for line in sys.stdin:
        time.sleep(PAUSE_S)
        clock = time.perf_counter()
        while time.perf_counter() - clock < WARM_UP_S:
            built["main"](*arrays)
        seconds, count = float(line), 0
        clock = time.perf_counter()
        while count == 0 or time.perf_counter() - clock < seconds:
            built["main"](*arrays)
            count += 1
        print((time.perf_counter() - clock) / count, file=answers, flush=True)


def _cpu() -> str:
    import tvm

    find = tvm.get_global_func("target.llvm_get_system_cpu", allow_missing=True)
    return str(find()) if find else "native"


if __name__ == "__main__":
    main()
