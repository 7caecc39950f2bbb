"""Settings: one frozen ``Config``, parsed once from arguments and ``NESTOR_*`` variables.

An argument wins over a variable, a variable over the default. An unknown ``NESTOR_*`` variable is
an error: a misspelt setting that does nothing costs more than a message.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestor.errors import UserError
from nestor.runtime.threads import available_cpus, thread_count

DEBUG_KINDS = ("passes", "legality", "fusion", "schedule", "code")
"""What ``NESTOR_DEBUG`` may ask for; ``all`` stands for all of them."""

LOG_LEVELS = ("error", "warning", "info", "debug")

_PREFIX = "NESTOR_"


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """The user's cache folder for Nestor, by the XDG base directory specification."""
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "nestor"


def _positive(name: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"{name}={text!r} is not a whole number of at least 1")
    return int(text)


def _kinds(name: str, text: str) -> tuple[str, ...]:
    asked = tuple(part.strip() for part in text.split(",") if part.strip())
    for kind in asked:
        if kind not in (*DEBUG_KINDS, "all"):
            raise UserError(
                f"{name}: no kind {kind!r}; there are {', '.join(DEBUG_KINDS)}, and all"
                + _nearest(kind, DEBUG_KINDS)
            )
    return tuple(kind for kind in DEBUG_KINDS if kind in asked or "all" in asked)


def _level(name: str, text: str) -> str:
    if text.lower() not in LOG_LEVELS:
        raise UserError(f"{name}={text!r} is not one of {', '.join(LOG_LEVELS)}")
    return text.lower()


def _path(name: str, text: str) -> Path:
    if not text:
        raise UserError(f"{name} is empty; give a folder, or leave it unset")
    return Path(text).expanduser()


def _text(name: str, text: str) -> str:
    if not text.strip():
        raise UserError(f"{name} is empty; give a value, or leave it unset")
    return text.strip()


def _records_url(name: str, text: str) -> str:
    """A database's URL. Its text is never repeated in a message: it may hold a password."""
    scheme, mark, rest = text.strip().partition("://")
    known = ("sqlite", "postgresql")
    if not mark or scheme not in known:
        asked = f" {scheme!r}" if mark else ""
        raise UserError(
            f"{name} names no database{asked}{_nearest(scheme, known) if mark else ''}\n"
            "  fix: give sqlite:///PATH or postgresql://USER@HOST/DATABASE, or leave it unset"
        )
    if scheme == "sqlite" and (not rest.startswith("/") or len(rest) < 2):
        raise UserError(f"{name}: sqlite:/// needs a path after three slashes, four if absolute")
    return text.strip()


def _nearest(wrong: str, known: tuple[str, ...]) -> str:
    """``; did you mean …?``, or nothing when nothing is near."""
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _setting(
    parse: Callable[[str, str], Any], default: Any, *, affects_code: bool, secret: bool = False
) -> Any:
    """A field of ``Config``: its parser, its default (a value, or a function that makes it),
    whether it changes generated code, and whether it is left out when settings are printed.
    """
    about = {"parse": parse, "affects_code": affects_code}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=about, repr=not secret)
    return dataclasses.field(default=default, metadata=about, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a process. Each is also the variable ``NESTOR_<NAME>``.

    Attributes:
        target: the CPU to generate code for: ``native``, or a name that ``nestor.target`` knows.
        threads: threads of a model's call; None: as many as PyTorch uses, else
            ``OMP_NUM_THREADS``, else one a core.
        workers: processes that compile kernels; None: one a core; 1: compile in this process.
        cache_dir: folder of compiled objects.
        cache: URL of the database of tuning records, ``sqlite:///PATH`` or ``postgresql://…``;
            None: the file ``records.db`` in ``cache_dir``.
        ray: address of a Ray cluster whose machines measure when schedules are searched: ``auto``,
            ``HOST:PORT``, ``ray://HOST:PORT``, or ``local``; None: this machine measures.
        cost_model: file of a cost model (``nestor train``); None: the one that ships; ``none``:
            none at all.
        debug: what to write down about each compilation (``DEBUG_KINDS``).
        debug_dir: folder that receives one folder a compilation when ``debug`` is not empty.
        log: least severe messages shown: error, warning, info or debug.
    """

    target: str = _setting(_text, "native", affects_code=True)
    threads: int | None = _setting(_positive, None, affects_code=False)
    workers: int | None = _setting(_positive, None, affects_code=False)
    cache_dir: Path = _setting(_path, lambda: default_cache_dir(os.environ), affects_code=False)
    cache: str | None = _setting(_records_url, None, affects_code=False, secret=True)
    ray: str | None = _setting(_text, None, affects_code=False)
    cost_model: Path | None = _setting(_path, None, affects_code=False)
    debug: tuple[str, ...] = _setting(_kinds, (), affects_code=False)
    debug_dir: Path = _setting(_path, Path(".nestor/debug"), affects_code=False)
    log: str = _setting(_level, "warning", affects_code=False)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **arguments: Any) -> Config:
        """Make the settings from ``arguments`` and variables.

        Args:
            environ: variables; None: the process's own.
            arguments: fields by name; None means "not given". Text is parsed like a variable.
        Raises: UserError for an unknown variable or argument, or a value that does not parse.
        """
        environ = os.environ if environ is None else environ
        fields = {f.name: f for f in dataclasses.fields(cls)}
        _refuse_unknown(environ, tuple(fields))
        values: dict[str, Any] = {"cache_dir": default_cache_dir(environ)}
        for name, field in fields.items():
            variable = _PREFIX + name.upper()
            if variable in environ:
                values[name] = field.metadata["parse"](variable, environ[variable])
        for name, given in arguments.items():
            if name not in fields:
                raise UserError(f"no setting {name!r}{_nearest(name, tuple(fields))}")
            if given is not None:
                parse = fields[name].metadata["parse"]
                values[name] = parse(name, given) if isinstance(given, str) else given
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("threads", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} is not a whole number of at least 1")

    def code_key(self) -> tuple[tuple[str, str], ...]:
        """Name and value of every setting that changes generated code, for cache keys.

        Derived from the fields' ``affects_code`` mark: a new field enters the key by its mark.
        (``threads`` is no such field: generated code is told the number at each call.)
        """
        return tuple(
            (field.name, str(getattr(self, field.name)))
            for field in dataclasses.fields(self)
            if field.metadata["affects_code"]
        )

    def thread_count(self) -> int:
        """Threads of a model's call: as set, else as ``runtime.threads`` finds."""
        return thread_count(self.threads)

    def worker_count(self) -> int:
        """Processes that compile kernels: as set, else one a core."""
        return self.workers if self.workers is not None else available_cpus()


def _refuse_unknown(environ: Mapping[str, str], names: tuple[str, ...]) -> None:
    """Raise UserError for a ``NESTOR_*`` variable that names no setting."""
    known = tuple(_PREFIX + name.upper() for name in names)
    for variable in sorted(environ):
        if variable.startswith(_PREFIX) and variable not in known:
            raise UserError(
                f"unknown variable {variable}{_nearest(variable, known)}\n"
                f"  known: {', '.join(known)}"
            )
