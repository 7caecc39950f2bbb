"""More peers, where they are installed: ONNX Runtime and OpenVINO.

Both take the model through ``torch.onnx`` (OpenVINO reads the same file), and run in float32 on the
given number of threads.
"""

from __future__ import annotations

import importlib.util
import io
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nestor.benchmarking import peers as known
from nestor.benchmarking.peers import Prepared
from nestor.errors import UserError

PEER_NAMES = {"ort": "onnxruntime", "ov": "openvino", "openvino": "openvino"}
"""Name → package that it needs."""


def register() -> None:
    """Make the peers of this module known by their names; ``ov`` is short for ``openvino``."""
    known.PEERS.update(
        compile="benchmarks.peers:frozen_compile",
        ort="benchmarks.peers:onnx_runtime",
        ov="benchmarks.peers:openvino",
        openvino="benchmarks.peers:openvino",
    )


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{package} is not installed; pip install -e '.[bench]'")


def _export(model: Any, inputs: Sequence[Any], folder: str) -> Path:
    """Write the model as ONNX, with its weights beside it."""
    import contextlib

    import torch

    file = Path(folder) / "model.onnx"
    # The exporter reports each of its steps on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, tuple(inputs), file, dynamo=True, external_data=True)
    return file


def frozen_compile(model: Any, inputs: Sequence[Any], threads: int) -> Prepared:
    """``torch.compile`` that may fold and repack the weights, as every peer that is compared may.

    ``nestor bench`` takes PyTorch's defaults; beside peers that own the weights, that would be
    unfair to it.
    """
    import torch._dynamo
    import torch._inductor.config

    # Past a number of modules of one class, a compilation would quietly run eager.
    torch._dynamo.reset()
    torch._inductor.config.freezing = True
    return known.torch_compile(model, inputs, threads)


def onnx_runtime(model: Any, inputs: Sequence[Any], threads: int) -> Prepared:
    """ONNX Runtime's CPU provider."""
    _need("onnxruntime")
    import onnxruntime

    start = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with TemporaryDirectory(prefix="nestor-onnx-") as folder:
        file = _export(model, inputs, folder)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    seconds = time.perf_counter() - start

    def call() -> Any:
        # Conversion to NumPy shares memory, so it costs next to nothing.
        feed = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
        return session.run(None, feed)

    return Prepared(call=call, compile_seconds=seconds)


def openvino(model: Any, inputs: Sequence[Any], threads: int) -> Prepared:
    """OpenVINO's CPU plugin, asked for float32 and for latency."""
    _need("openvino")
    import openvino as ov

    start = time.perf_counter()
    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    with TemporaryDirectory(prefix="nestor-onnx-") as folder:
        compiled = core.compile_model(_export(model, inputs, folder), "CPU", settings)
    request = compiled.create_infer_request()
    seconds = time.perf_counter() - start

    def call() -> Any:
        # Shared, as the inputs of every other peer are: a copy would count against it.
        request.infer([x.numpy() for x in inputs], share_inputs=True)
        # A copy, as every other peer returns fresh outputs. To give it fresh ones to write to took
        # longer: softmax of 72 MB 84 ms, not 80; a convolution 2.5 ms, not 1.9.
        return [output.data.copy() for output in request.output_tensors]

    return Prepared(call=call, compile_seconds=seconds)
