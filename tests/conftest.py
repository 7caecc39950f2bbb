"""Options and fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# One thread of PyTorch's per core makes small tests slow and noisy; tests that need more say so.
os.environ.setdefault("OMP_NUM_THREADS", "2")

# A shell that runs tests in the background ignores Ctrl-C for them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that ``make golden`` and ``make fuzz`` pass."""
    group = parser.getgroup("nestor")
    group.addoption(
        "--update-golden", action="store_true", help="write expected texts instead of comparing"
    )
    group.addoption("--fuzz-seed", type=int, default=0, help="seed of the random programs")
    group.addoption("--fuzz-cases", type=int, default=200, help="number of random programs")
    group.addoption("--fuzz-first", type=int, default=0, help="number of the first random program")
    group.addoption("--fuzz-only", type=int, metavar="CASE", help="run one random program again")
    group.addoption(
        "--object-cache",
        metavar="DIR",
        help="keep compiled objects here between runs; by default each run starts without any",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests away from the user's own cache, in worker processes too."""
    if not hasattr(config, "workerinput"):
        chosen = config.getoption("--object-cache")
        if chosen is None:
            scratch = tempfile.TemporaryDirectory(prefix="nestor-tests-")
            config.add_cleanup(scratch.cleanup)
            chosen = scratch.name
        os.environ["NESTOR_CACHE_DIR"] = str(Path(chosen).resolve())
    for name in ("NESTOR_CACHE", "NESTOR_DEBUG", "NESTOR_THREADS", "NESTOR_WORKERS", "NESTOR_LOG"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def fuzz_seed(request: pytest.FixtureRequest) -> int:
    """Seed of the random programs (``--fuzz-seed``)."""
    return int(request.config.getoption("--fuzz-seed"))


@pytest.fixture(scope="session")
def fuzz_cases(request: pytest.FixtureRequest) -> int:
    """How many random programs to try (``--fuzz-cases``)."""
    return int(request.config.getoption("--fuzz-cases"))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Iterator[Callable[[str, str], None]]:
    """Compare a text with the file of that name in the ``expected`` folder beside the test.

    Use: ``golden("matmul.txt", text)``. With ``--update-golden`` the file is written instead. A
    missing file fails, so a new test cannot pass by having nothing to compare with.
    """
    folder = Path(request.path).parent / "expected"
    update = bool(request.config.getoption("--update-golden"))

    def compare(name: str, text: str) -> None:
        file = folder / name
        if update:
            folder.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        if not file.exists():
            pytest.fail(f"{file.name} does not exist; write it with `make golden`, and read it")
        assert text == file.read_text(encoding="utf-8"), f"{name} changed; see `make golden`"

    yield compare
