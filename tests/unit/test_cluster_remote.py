"""What travels between a driver and the machines of a cluster: texts, strictly read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nestor.autotune.measuring import Candidate, Measurement
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.records import BadRecord, TargetKey
from nestor.autotune.remote import (
    Description,
    RemoteMeasurer,
    decode_confirmation,
    decode_measurements,
    encode_request,
)
from nestor.errors import InternalError
from nestor.ir.schedule import Parallel
from nestor.target.cpu import host_target
from tests.helpers import ir_programs, measured

SETTINGS = json.dumps(
    {
        "target": "native",
        "threads": 1,
        "policy": {"least": 2, "most": 2, "seconds": 0.01},
        "sample_seconds": 2e-5,
    }
)


@pytest.fixture(scope="module")
def worker() -> RemoteMeasurer:
    return RemoteMeasurer(SETTINGS)


def test_it_describes_itself(worker: RemoteMeasurer) -> None:
    about = Description.from_json(worker.describe())
    assert about.target == TargetKey.of(host_target())
    assert about.threads == 1
    assert Description.from_json(about.to_json()) == about
    with pytest.raises(BadRecord):
        Description.from_json("{}")


def test_it_measures_as_a_machine_does(
    worker: RemoteMeasurer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NESTOR_CACHE_DIR", str(tmp_path))
    made = measured.default(ir_programs.matmul(16, 24, 32))
    illegal = Candidate(kernel=made.kernel, schedule=(Parallel(loop="S0.k0"),))
    request, inputs = encode_request([made, illegal], made, sizes=None, best=1.0)
    assert inputs is None and isinstance(request, str)
    found = decode_measurements(worker.measure(request), 2)
    assert [m.status for m in found] == ["ok", "illegal"]
    assert len(found[0].samples_ns) == 2 and found[0].ratio is not None
    assert found[1].detail and set(found[0].seconds) == {"compile", "check", "run"}
    policy = PairPolicy(least=9, most=9, seconds=0.01)
    request, _ = encode_request([made], made, seeds=1, policy=policy)
    done = decode_confirmation(worker.confirm(request))
    assert done.agrees and done.ratio is not None and len(done.measurement.samples_ns) == 9
    wrong = encode_request([made], illegal)[0]
    with pytest.raises(InternalError, match="reference schedule of kernel 'kernel' is illegal"):
        decode_measurements(worker.measure(wrong), 1)


GOOD = {"status": "ok", "samples_ns": [[1.0, 2.0]], "detail": "", "seconds": {}}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[" * 100_000,
        "{}",
        json.dumps({"ok": [GOOD, GOOD]}),
        json.dumps({"ok": [{**GOOD, "status": "fine"}]}),
        json.dumps({"ok": [{**GOOD, "samples_ns": []}]}),
        json.dumps({"ok": [{**GOOD, "samples_ns": [[1.0, float("nan")]]}]}),
        json.dumps({"ok": [{**GOOD, "samples_ns": [[1.0, -2.0]]}]}),
        json.dumps({"ok": [{**GOOD, "samples_ns": [[1.0]]}]}),
        json.dumps({"ok": [{**GOOD, "samples_ns": [[1.0, 2.0]] * 5000}]}),
        json.dumps({"ok": [{**GOOD, "detail": 3}]}),
        json.dumps({"ok": [{**GOOD, "seconds": {"run": "long"}}]}),
        json.dumps({"ok": [{**GOOD, "more": 1}]}),
        json.dumps({"ok": 7}),
        json.dumps({"error": {}}),
    ],
)
def test_odd_answers_are_refused(answer: str) -> None:
    with pytest.raises(InternalError):
        decode_measurements(answer, 1)


def test_a_good_answer_is_read() -> None:
    expected = Measurement(status="ok", samples_ns=((1.0, 2.0),))
    assert decode_measurements(json.dumps({"ok": [GOOD]}), 1) == [expected]


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "program broken("},
        {"candidates": [[{"step": "Rm", "path": "/"}]]},
        {"candidates": "x"},
        {"more": {"policy": {"unheard": 1}}},
    ],
)
def test_odd_requests_are_answered_with_an_error(
    worker: RemoteMeasurer, change: dict[str, Any]
) -> None:
    made = measured.default(ir_programs.matmul(16, 24, 32))
    request = {**json.loads(encode_request([made], made)[0]), **change}
    assert set(json.loads(worker.measure(json.dumps(request)))) == {"error"}
