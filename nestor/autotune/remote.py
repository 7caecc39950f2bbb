"""A ``Measurer`` that is asked, and answers, in JSON texts: how machines of a cluster measure.

What travels is data: a kernel as IR text, schedules and times as JSON. Both sides parse it strictly
and have Nestor installed; neither sends code to the other.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from nestor import _worker
from nestor.autotune.measuring import Candidate, Confirmation, Measurement, Measurer, Status
from nestor.autotune.pairing import Interval, PairPolicy
from nestor.autotune.records.checking import (
    MAX_DETAIL_CHARS,
    MAX_FACTS_CHARS,
    MAX_KERNEL_CHARS,
    MAX_NAME_CHARS,
    MAX_SAMPLES,
    BadRecord,
    check_int,
    check_keys,
    check_text,
    check_time_ns,
    clean_text,
    parse_schedule,
)
from nestor.autotune.records.record import TargetKey, current_generator
from nestor.config import Config
from nestor.errors import InternalError, NestorError
from nestor.ir.parser import parse_program
from nestor.ir.printer import print_program
from nestor.ir.schedule import schedule_to_json
from nestor.target.cpu import parse_target

T = TypeVar("T")
Inputs = Mapping[str, Any]
"""Arrays by tensor; the one thing that travels beside the texts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a worker says about itself.

    Attributes:
        host: for people. machine: equal for two workers on one machine, in containers too.
        target: what its times depend on. threads: of kernels. generator: its code generator.
    """

    host: str
    machine: str
    target: TargetKey
    threads: int
    generator: str

    def to_json(self) -> str:
        """As text."""
        return json.dumps({**_shallow(self), "target": self.target.text})

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Inverse of ``to_json``. Raises: ``BadRecord``."""
        names = {f.name for f in dataclasses.fields(cls)}
        data = check_keys("description", _parse(text), names)
        return cls(
            host=check_text("host", data["host"], MAX_NAME_CHARS * 10),
            machine=check_text("machine", data["machine"], MAX_NAME_CHARS),
            target=TargetKey.parsed(check_text("target", data["target"], MAX_FACTS_CHARS)),
            threads=check_int("threads", data["threads"], 1),
            generator=check_text("generator", data["generator"], MAX_NAME_CHARS),
        )


class RemoteMeasurer:
    """What runs in a worker's process.

    Args: settings: JSON of ``target`` (a name), ``threads``, and what else ``Measurer`` takes:
        ``policy`` (fields of ``PairPolicy``) and ``sample_seconds``.
    """

    def __init__(self, settings: str):
        given = json.loads(settings)
        self._target = parse_target(given["target"])
        more: dict[str, Any] = {}
        if given.get("policy") is not None:
            more["policy"] = PairPolicy(**given["policy"])
        if given.get("sample_seconds") is not None:
            more["sample_seconds"] = given["sample_seconds"]
        self._more = more
        self._threads = int(given["threads"])
        self._measurer: Measurer | None = None

    def describe(self) -> str:
        """A ``Description``."""
        return Description(
            host=socket.gethostname(),
            machine=machine_identity(),
            target=TargetKey.of(self._target),
            threads=self._threads,
            generator=current_generator(),
        ).to_json()

    def measure(self, request: str, inputs: Inputs | None = None) -> str:
        """``Measurer.measure`` for ``encode_request``; a text for ``decode_measurements``."""
        return self._answer(request, inputs, "measure")

    def confirm(self, request: str, inputs: Inputs | None = None) -> str:
        """``Measurer.confirm`` likewise, for one candidate."""
        return self._answer(request, inputs, "confirm")

    def pid(self) -> int:
        """Of the process."""
        return os.getpid()

    def _answer(self, request: str, inputs: Inputs | None, what: str) -> str:
        try:
            candidates, reference, more = _decode_request(request)
            if inputs is not None:
                more["inputs"] = inputs
            if self._measurer is None:
                self._measurer = Measurer(
                    self._target, threads=self._threads, config=Config.load(), **self._more
                )
            if what == "confirm":
                (candidate,) = candidates
                done = self._measurer.confirm(candidate, reference, **more)
                return json.dumps({"ok": _confirmation_to_json(done)})
            found = self._measurer.measure(candidates, reference, **more)
            return json.dumps({"ok": [_measurement_to_json(m) for m in found]})
        except (NestorError, BadRecord) as error:
            return json.dumps({"error": _worker.encode_error(error).decode()})


def machine_identity() -> str:
    """A text that is the same for all processes of a machine since it was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


# ------------------------------------------------------------------------------------ requests


def encode_request(
    candidates: Sequence[Candidate], reference: Candidate, **more: Any
) -> tuple[str, Inputs | None]:
    """A request's text, and the arrays that go with it.

    Args: more: of ``Measurer.measure`` or ``confirm``; what is None is left out.
    """
    inputs = more.pop("inputs", None)
    policy = more.pop("policy", None)
    if policy is not None:
        more["policy"] = dataclasses.asdict(policy)
    request = {
        "kernel": print_program(reference.kernel),
        "reference": schedule_to_json(reference.schedule),
        "candidates": [schedule_to_json(c.schedule) for c in candidates],
        "more": {name: value for name, value in more.items() if value is not None},
    }
    return json.dumps(request), inputs


def _decode_request(text: str) -> tuple[list[Candidate], Candidate, dict[str, Any]]:
    """Raises: ``BadRecord``, ``IRError``."""
    data = check_keys("request", _parse(text), {"kernel", "reference", "candidates", "more"})
    kernel = parse_program(check_text("kernel", data["kernel"], MAX_KERNEL_CHARS))
    reference, *candidates = (
        Candidate(kernel=kernel, schedule=parse_schedule(s))
        for s in (data["reference"], *data["candidates"])
    )
    try:
        more = dict(data["more"])
        if "policy" in more:
            more["policy"] = PairPolicy(**more["policy"])
    except (TypeError, ValueError) as error:
        raise BadRecord(f"request: {error}") from None
    return candidates, reference, more


# ------------------------------------------------------------------------------------ answers


def decode_measurements(text: str, count: int) -> list[Measurement]:
    """The answer to ``measure``, for ``count`` candidates.

    Raises: ``InternalError`` for anything else; what the worker raised.
    """
    found = _decode(text, lambda data: [_measurement(m) for m in data])
    if len(found) != count:
        raise InternalError(f"a worker measured {len(found)} candidates of {count}")
    return found


def decode_confirmation(text: str) -> Confirmation:
    """The answer to ``confirm``. Raises: as ``decode_measurements``."""
    return _decode(text, _confirmation)


def _decode(text: str, read: Callable[[Any], T]) -> T:
    try:
        data = _parse(text)
        if isinstance(data, dict) and set(data) == {"error"}:
            raise _worker.decode_error(str(data["error"]).encode())
        return read(check_keys("answer", data, {"ok"})["ok"])
    except (TypeError, ValueError, KeyError) as error:
        raise InternalError(f"a worker's answer cannot be read: {error}") from None


def _measurement_to_json(found: Measurement) -> dict[str, Any]:
    return {**_shallow(found), "detail": clean_text(found.detail)}


def _measurement(data: object) -> Measurement:
    keys = {f.name for f in dataclasses.fields(Measurement)}
    fields = check_keys("measurement", data, keys)
    status, samples = fields["status"], fields["samples_ns"]
    if status not in get_args(Status) or not isinstance(samples, list):
        raise BadRecord(f"a measurement of status {str(status)[:40]!r}")
    if len(samples) > MAX_SAMPLES or (status == "ok") != bool(samples):
        raise BadRecord(f"{len(samples)} samples of status {status}")
    pairs = ((check_time_ns("time", c), check_time_ns("time", r)) for c, r in samples)
    seconds = fields["seconds"]
    if not isinstance(seconds, dict):
        raise BadRecord("seconds of a measurement are no object")
    return Measurement(
        status=cast("Status", status),
        samples_ns=tuple(pairs),
        detail=check_text("detail", fields["detail"], MAX_DETAIL_CHARS),
        seconds={str(n): _number(s) for n, s in seconds.items()},
    )


def _confirmation_to_json(found: Confirmation) -> dict[str, Any]:
    intervals = {
        name: None if one is None else [one.median, one.low, one.high]
        for name, one in (("ratio", found.ratio), ("null", found.null))
    }
    return {
        **_shallow(found),
        **intervals,
        "measurement": _measurement_to_json(found.measurement),
    }


def _confirmation(data: object) -> Confirmation:
    keys = {f.name for f in dataclasses.fields(Confirmation)}
    fields = check_keys("confirmation", data, keys)
    return Confirmation(
        ratio=_interval(fields["ratio"]),
        null=_interval(fields["null"]),
        agrees=fields["agrees"] is True,
        measurement=_measurement(fields["measurement"]),
        seeds=tuple(check_int("seed", s, 0) for s in fields["seeds"]),
    )


def _interval(data: object) -> Interval | None:
    if data is None:
        return None
    if not isinstance(data, list) or len(data) != 3:
        raise BadRecord("an interval is three numbers")
    return Interval(median=_number(data[0]), low=_number(data[1]), high=_number(data[2]))


def _number(value: object) -> float:
    """A float; an interval's end may be infinite, but nothing is not a number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        raise BadRecord(f"{str(value)[:40]!r} is not a number")
    return float(value)


def _parse(text: object) -> Any:
    try:
        return json.loads(check_text("message", text, 1 << 26))
    except BadRecord:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"message is not JSON: {type(error).__name__}") from None


def _shallow(value: Any) -> dict[str, Any]:
    """A dataclass's fields by name."""
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
