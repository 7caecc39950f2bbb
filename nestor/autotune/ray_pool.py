"""Measurement on the machines of a Ray cluster, one batch a machine at a time.

On every node lives one actor that has asked Ray for all of the node's cores, so that nothing else
that Ray runs there disturbs it. Times of different kinds of machines do not mix: a worker whose
target, threads or code generator are not the driver's is refused, and listed with the field that
differs. A worker that is lost costs what it was measuring, which goes to another one; without any
worker left, this machine measures.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from nestor.autotune.kernel_inputs import Array
from nestor.autotune.measuring import Candidate, Confirmation, Measurement, Measurer
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.records import BadRecord, TargetKey, current_generator
from nestor.autotune.records.misses import fact_differences
from nestor.autotune.remote import (
    Description,
    RemoteMeasurer,
    decode_confirmation,
    decode_measurements,
    encode_request,
)
from nestor.errors import InternalError, UserError

T = TypeVar("T")

START_SECONDS = 120.0
"""For an actor to get its cores and to start [s]."""

CONNECT_SECONDS = 10.0
"""For the cluster's head to answer [s]."""

BATCH_SECONDS = 900.0
"""A worker that takes longer over a batch is given up [s]."""

_MOST_LOSSES = 3
"""Workers that one batch may lose until this machine measures it."""


class ClusterWarning(UserWarning):
    """A machine of the cluster cannot be used, or was lost; tuning goes on without it."""


@dataclass(slots=True, eq=False)
class Worker:
    """A node of the cluster.

    Attributes:
        node: Ray's name of it. actor: a handle. about: what it says of itself.
        refused: why it is not used, or no longer; empty: it is.
        batches: how many it has measured.
    """

    node: str
    actor: Any
    about: Description | None = None
    refused: str = ""
    batches: int = 0
    is_busy: bool = False


class RayPool:
    """Measures on a cluster; for ``Tuner`` in place of a ``Measurer``. Any thread may ask.

    Args:
        address: as of ``ray.init``: ``auto``, ``HOST:PORT``, ``ray://HOST:PORT``, or ``local``.
        target: ``Config.target``, a name. key: the driver's target under that name.
        threads: of kernels.
        local: makes what measures here when no worker is left.
        policy, sample_seconds: see ``Measurer``; None: its defaults.
        one_per_machine: two nodes on one machine would disturb each other: the second is refused.
    Raises: ``UserError`` if Ray is not installed, the cluster does not answer, or no node can be
        used; it names each with the reason.
    """

    def __init__(
        self,
        address: str,
        *,
        target: str,
        key: TargetKey,
        threads: int,
        local: Callable[[], Measurer],
        policy: PairPolicy | None = None,
        sample_seconds: float | None = None,
        one_per_machine: bool = True,
    ):
        self._ray = _connected(address)
        self._make_local = local
        self._local: Measurer | None = None
        self._key, self._threads, self._one_per_machine = key, threads, one_per_machine
        self._changed = threading.Condition()
        self._local_lock = threading.Lock()
        settings = json.dumps(
            {
                "target": target,
                "threads": threads,
                "policy": None if policy is None else dataclasses.asdict(policy),
                "sample_seconds": sample_seconds,
            }
        )
        self.workers = self._start(settings)
        usable = self._usable()
        for worker in self.workers:
            if worker.refused and usable:
                _warn(worker)
        if not usable:
            self.close()
            reasons = "\n  ".join(f"{w.node}: {w.refused}" for w in self.workers)
            raise UserError(
                f"the Ray cluster at {address} has no machine to measure on:\n  "
                f"{reasons or 'no node has a CPU'}\n  fix: tune on a machine like those, with as "
                "many --threads; or leave out --ray, and measure here"
            )

    @property
    def slots(self) -> int:
        """Workers that can measure; 1 without any, for this machine does."""
        return max(1, len(self._usable()))

    def _usable(self) -> list[Worker]:
        return [w for w in self.workers if not w.refused]

    # ------------------------------------------------------------------------------ start

    def _start(self, settings: str) -> list[Worker]:
        """An actor a node, all at once; then each says what it is."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self._ray.remote(max_restarts=0, max_task_retries=0)(RemoteMeasurer)
        workers = []
        for node in self._ray.nodes():
            cores = node.get("Resources", {}).get("CPU", 0)
            if not node["Alive"] or not cores:
                continue
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            actor = remote.options(num_cpus=cores, scheduling_strategy=where).remote(settings)
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            workers.append(Worker(node=name, actor=actor))
        asked = [(w, w.actor.describe.remote()) for w in workers]
        end, machines = time.monotonic() + START_SECONDS, set[str]()
        for worker, answer in asked:
            try:
                text = self._ray.get(answer, timeout=max(0.1, end - time.monotonic()))
                worker.about = Description.from_json(text)
            except self._ray.exceptions.GetTimeoutError:
                worker.refused = "its cores are busy, or it does not start"
            except self._ray.exceptions.RayError as error:
                worker.refused = f"cannot measure: {_last_line(error)}"
            except BadRecord as error:
                worker.refused = f"another version of Nestor: {error}"
            else:
                worker.refused = self._difference(worker.about, machines)
                if not worker.refused:
                    machines.add(worker.about.machine)
            if worker.refused:
                self._ray.kill(worker.actor)
        return workers

    def _difference(self, about: Description, machines: set[str]) -> str:
        """Why a worker's times do not count here; empty if they do."""
        if about.generator != current_generator():
            return f"its code generator is {about.generator}, not {current_generator()}"
        if about.target != self._key:
            fields = fact_differences(self._key, about.target)
            said = (f"{d.field} is {d.found} there and {d.wanted} here" for d in fields)
            return f"another kind of machine: {'; '.join(said)}"
        if about.threads != self._threads:
            return f"{about.threads} threads, not {self._threads}"
        if self._one_per_machine and about.machine in machines:
            return "another node of the same machine measures"
        return ""

    # ------------------------------------------------------------------------------ measuring

    def measure(
        self,
        candidates: Sequence[Candidate],
        reference: Candidate,
        *,
        sizes: Mapping[str, int] | None = None,
        inputs: Mapping[str, Array] | None = None,
        best: float = 1.0,
        policy: PairPolicy | None = None,
    ) -> list[Measurement]:
        """See ``Measurer.measure``."""
        more: dict[str, Any] = {"sizes": dict(sizes or {}), "best": best}
        more |= {"inputs": inputs, "policy": policy}
        answer = self._ask("measure", *encode_request(candidates, reference, **more))
        if answer is not None:
            return decode_measurements(answer, len(candidates))
        return self._here(lambda m: m.measure(candidates, reference, **more))

    def confirm(
        self,
        candidate: Candidate,
        default: Candidate,
        *,
        sizes: Mapping[str, int] | None = None,
        inputs: Mapping[str, Array] | None = None,
        seeds: int = 2,
        policy: PairPolicy | None = None,
    ) -> Confirmation:
        """See ``Measurer.confirm``."""
        more: dict[str, Any] = {"sizes": dict(sizes or {}), "seeds": seeds}
        more |= {"inputs": inputs, "policy": policy}
        answer = self._ask("confirm", *encode_request([candidate], default, **more))
        if answer is not None:
            return decode_confirmation(answer)
        return self._here(lambda m: m.confirm(candidate, default, **more))

    def _ask(self, command: str, *request: Any) -> str | None:
        """A worker's answer; None if there is none to ask."""
        errors = self._ray.exceptions
        for _ in range(_MOST_LOSSES):
            worker = self._take()
            if worker is None:
                break
            try:
                running = getattr(worker.actor, command).remote(*request)
                answer: str = self._ray.get(running, timeout=BATCH_SECONDS)
            except errors.RayTaskError as error:
                raise InternalError(f"measuring on {worker.node}: {error}") from None
            except (errors.RayError, ConnectionError) as error:
                self._lose(worker, f"lost: {type(error).__name__}")
            else:
                worker.batches += 1
                return answer
            finally:
                self._give_back(worker)
        return None

    def _take(self) -> Worker | None:
        """A worker that has nothing to do, as soon as there is one; None if none is left."""
        with self._changed:
            while usable := self._usable():
                idle = [w for w in usable if not w.is_busy]
                if idle:
                    worker = min(idle, key=lambda w: w.batches)
                    worker.is_busy = True
                    return worker
                self._changed.wait()
            return None

    def _give_back(self, worker: Worker) -> None:
        with self._changed:
            worker.is_busy = False
            self._changed.notify_all()

    def _lose(self, worker: Worker, why: str) -> None:
        with self._changed:
            worker.refused = why
        self._ray.kill(worker.actor)
        _warn(worker, "" if self._usable() else "; no worker is left, so this machine measures")

    def _here(self, action: Callable[[Measurer], T]) -> T:
        with self._local_lock:
            if self._local is None:
                self._local = self._make_local()
            return action(self._local)

    # ------------------------------------------------------------------------------ end

    def close(self) -> None:
        """End the actors; the cluster, and a connection that was there before, stay."""
        for worker in self.workers:
            self._ray.kill(worker.actor)
        if self._local is not None:
            self._local.close()

    def __enter__(self) -> RayPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _connected(address: str) -> Any:
    """Ray, connected. Raises: ``UserError``."""
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError(
            "measuring on a cluster needs the package ray\n  fix: pip install 'nestor[ray]'"
        ) from None
    if not ray.is_initialized():
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ValueError, RuntimeError, OverflowError, OSError) as error:
            raise UserError(
                f"no Ray cluster answers at {address!r}: {_last_line(error)}\n"
                "  fix: give HOST:PORT of its head (`ray start --head` prints it), or auto"
            ) from None
    return ray


def _knock(address: str) -> None:
    """Raise ``OSError`` where nobody listens: Ray itself would try again for minutes."""
    place = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:([0-9]+)", address)
    if place is not None:
        socket.create_connection((place[1], int(place[2])), CONNECT_SECONDS).close()


def _warn(worker: Worker, more: str = "") -> None:
    warnings.warn(
        f"Ray node {worker.node} is not used: {worker.refused}{more}", ClusterWarning, stacklevel=3
    )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__).strip()[:300]
