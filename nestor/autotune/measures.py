"""What the tuner needs of whoever measures: this machine (``Measurer``) or a cluster's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from nestor.autotune.kernel_inputs import Array
    from nestor.autotune.measuring import Candidate, Confirmation, Measurement
    from nestor.autotune.pairing import PairPolicy

T = TypeVar("T")
R = TypeVar("R")


class Measures(Protocol):
    """Measures candidates; with several ``slots``, in as many threads at once."""

    @property
    def slots(self) -> int:
        """Batches that are worth having under way; at least 1, and it may change."""

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


class Flights(Generic[T, R]):
    """Batches under way: with one slot each is measured when its end is awaited, in the caller's
    own thread; with several, in threads.

    Args: measurer: whose slots count. action: measures a batch.
    """

    def __init__(self, measurer: Measures, action: Callable[[T], R]):
        self._measurer, self._action = measurer, action
        self._waiting: deque[T] = deque()
        self._flying: dict[Future[R], T] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._flying)

    @property
    def batches(self) -> list[T]:
        """What is under way."""
        return [*self._waiting, *self._flying.values()]

    @property
    def has_room(self) -> bool:
        """Whether another batch may depart."""
        return len(self) < max(1, self._measurer.slots)

    def depart(self, batch: T) -> None:
        """Have ``batch`` measured."""
        if self._measurer.slots <= 1:
            self._waiting.append(batch)
            return
        if self._threads is None:
            # As many as slots can ever be: threads cost nothing until they are used.
            self._threads = ThreadPoolExecutor(1024, thread_name_prefix="nestor-measure")
        self._flying[self._threads.submit(self._action, batch)] = batch

    def arrive(self) -> tuple[T, R]:
        """The next batch to be done, with its result. Raises: what the action did."""
        if self._flying:
            done = next(iter(wait(self._flying, return_when=FIRST_COMPLETED).done))
            return self._flying.pop(done), done.result()
        batch = self._waiting.popleft()
        return batch, self._action(batch)

    def __enter__(self) -> Flights[T, R]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._threads is not None:
            # What still flies after an error or Ctrl-C is not waited for.
            self._threads.shutdown(wait=error is None, cancel_futures=True)
