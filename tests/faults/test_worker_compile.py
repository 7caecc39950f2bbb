"""The kinds of job that the compiler sends: LLVM IR and whole kernels."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import pytest

from nestor import _worker
from nestor.errors import InternalError
from nestor.runtime.elf import load_object
from nestor.target.cpu import parse_target
from nestor.workers import WorkerPool

SEVEN = "define i32 @seven() { ret i32 7 }"


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    made = WorkerPool(2, reproducer_dir=tmp_path_factory.mktemp("reproducers"))
    yield made
    made.close()


def job(text: str) -> bytes:
    return json.dumps({"ir": text, "target": parse_target("x86-64-v3").to_json()}).encode()


def test_ir_becomes_an_object_that_runs(pool):
    futures = [pool.submit("compile", job(SEVEN.replace("7", str(n)))) for n in range(8)]
    for n, future in enumerate(futures):
        loaded = load_object(future.result())
        assert ctypes.CFUNCTYPE(ctypes.c_int)(loaded.address("seven"))() == n


def test_the_same_bytes_here_and_there(pool):
    assert pool.submit("compile", job(SEVEN)).result() == _worker.run_job("compile", job(SEVEN))


def test_text_that_is_no_ir_gives_a_reproducer(pool):
    with pytest.raises(InternalError) as caught:
        pool.submit("compile", job("define i32 @seven( {")).result()
    folder = Path(caught.value.reproducer or "")
    assert json.loads((folder / "payload").read_bytes())["ir"] == "define i32 @seven( {"
    assert (folder / "kind").read_text() == "compile"


def test_every_kind_can_be_found():
    import importlib

    for place in _worker.KINDS.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
