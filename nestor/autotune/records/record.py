"""Records and the keys under which they are found, as immutable, validated values."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Union, get_args

from nestor.autotune.records.checking import (
    MAX_DETAIL_CHARS,
    MAX_FACTS_CHARS,
    MAX_INT64,
    MAX_KERNEL_CHARS,
    MAX_NAME_CHARS,
    MAX_POINT_CHARS,
    MAX_SAMPLES,
    MAX_SCHEDULE_CHARS,
    BadRecord,
    canonical_json,
    check_int,
    check_keys,
    check_schedule,
    check_text,
    check_time_ns,
    check_written,
    clean_text,
    digest_of,
    parse_json,
    parse_schedule,
)
from nestor.errors import IRError
from nestor.ir.hashing import canonicalize
from nestor.ir.lexer import Tokens
from nestor.ir.parser import parse_program
from nestor.ir.printer import print_program
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import Schedule, schedule_to_json
from nestor.passes.analysis import statement_flops
from nestor.target.cpu import CpuTarget
from nestor.target.gpu import GpuTarget

Status = Literal["ok", "illegal", "unknown", "wrong", "crashed", "timeout", "memory"]
"""What came of a schedule: measured; refused by the checker; not decided by it; another result than
the reference's; killed by a signal; too long; out of memory."""

STATUSES: tuple[Status, ...] = get_args(Status)

CONDEMNED: tuple[Status, ...] = ("illegal", "wrong", "crashed")
"""One such record outweighs any number of good times of the same schedule and generator."""

Knob = Union[None, bool, int, float, str, tuple["Knob", ...]]
Point = tuple[tuple[str, Knob], ...]
Fact = Union[str, int, tuple[str, ...]]

MAX_THREADS = 1 << 16
_MAX_KNOB_DEPTH = 4


def current_generator() -> str:
    """The code generator that this Nestor has, as it stands in records."""
    from nestor.codegen.llvm import CODEGEN_VERSION

    return f"llvm {CODEGEN_VERSION}"


def package_version() -> str:
    """Nestor's own version."""
    import nestor

    return nestor.__version__


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelKey:
    """A kernel as records know it: its canonical text, and what finds others like it.

    Attributes:
        text: of the kernel in canonical names (``parse_program`` reads it back).
        family: digest of the text without sizes; equal for kernels that differ in these alone.
        statements: how many there are.
        operations: arithmetic of one run, in additions, symbols at a typical size.
        digest: SHA-256 of ``text``; the kernel's name everywhere in the database.
    """

    text: str
    family: str
    statements: int
    operations: int
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        check_text("kernel text", self.text, MAX_KERNEL_CHARS)
        check_text("family", self.family, 64)
        check_int("statements", self.statements, 0)
        check_int("operations", self.operations, 0, MAX_INT64)
        object.__setattr__(self, "digest", digest_of(self.text))

    @classmethod
    def of(cls, kernel: Program, sizes: Mapping[str, int] | None = None) -> KernelKey:
        """The key of a kernel, whatever its names are.

        Unused symbols count: give what ``passes.canonical.canonicalize_kernel`` makes.
        Args: sizes: of symbols. How a kernel of symbolic sizes runs best depends on them, so its
            records are of a kernel whose symbols can only be what was measured: another one for
            other sizes, of the same family.
        """
        if sizes:
            symbols = (
                replace(s, lower=sizes[s.name], upper=sizes[s.name]) if s.name in sizes else s
                for s in kernel.symbols
            )
            kernel = replace(kernel, symbols=tuple(symbols))
        text = print_program(canonicalize(kernel)[0], origins=False)
        work = sum(statement_flops(s) for s in kernel.statements if isinstance(s, Statement))
        return cls(
            text=text,
            family=family_of(text),
            statements=len(kernel.statements),
            operations=min(round(work), MAX_INT64) if math.isfinite(work) else MAX_INT64,
        )

    @classmethod
    def parsed(cls, text: object) -> KernelKey:
        """The key of a text from outside, which must be exactly what ``of`` writes.

        Raises: ``BadRecord``.
        """
        text = check_text("kernel text", text, MAX_KERNEL_CHARS)
        try:
            key = cls.of(parse_program(text))
        except (IRError, ValueError, KeyError, OverflowError, RecursionError) as error:
            raise BadRecord(f"kernel text: {type(error).__name__}: {str(error)[:200]}") from None
        if key.text != text:
            raise BadRecord("kernel text is not in canonical form")
        return key

    def program(self) -> Program:
        """The kernel itself."""
        return parse_program(self.text)


def size_free_tokens(text: str) -> tuple[list[str], list[str]]:
    """Tokens of an IR text with sizes replaced by ``_``, and the sizes.

    A size is a number other than 0 and 1: a dimension of one changes what can be done to a kernel,
    one of 64 or 128 how it is best done.
    """
    tokens, sizes = [], []
    for token in Tokens(text).tokens:
        if token.kind in ("int", "float") and token.text not in ("0", "1"):
            sizes.append(token.text)
            tokens.append("_")
        else:
            tokens.append(token.text)
    return tokens, sizes


def family_of(text: str) -> str:
    """Digest of a kernel's text without its sizes."""
    return digest_of("\n".join(size_free_tokens(text)[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetKey:
    """What a measured time depends on, by name (``CpuTarget.tuning_facts``), and its digest.

    Never a host name, a path or a hint for tuning: equal machines share their records.
    """

    facts: tuple[tuple[str, Fact], ...]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        for name, value in self.facts:
            check_text("target fact", name, MAX_NAME_CHARS)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, str):
                    check_text(name, part, MAX_NAME_CHARS)
                elif isinstance(value, tuple):
                    raise BadRecord(f"target: {name} is not a list of texts")
                else:
                    check_int(name, part, 0, MAX_INT64)
        names = [name for name, _ in self.facts]
        if not names or names != sorted(set(names)):
            raise BadRecord("target: facts are not in order")
        object.__setattr__(self, "digest", digest_of(self.text))

    @property
    def text(self) -> str:
        """The facts as JSON."""
        return canonical_json(dict(self.facts))

    @classmethod
    def of(cls, target: CpuTarget | GpuTarget) -> TargetKey:
        """The key of a CPU, or of a GPU with what generates its code."""
        facts = target.tuning_facts()
        if isinstance(target, GpuTarget):
            from nestor.codegen.triton import CODEGEN_VERSION

            facts["generator"] = f"triton {CODEGEN_VERSION}"
        return cls._from_facts(facts)

    @classmethod
    def parsed(cls, text: object) -> TargetKey:
        """The key of a text from outside. Raises: ``BadRecord``."""
        data = parse_json("target", text, MAX_FACTS_CHARS)
        if not isinstance(data, dict):
            raise BadRecord("target is not an object")
        key = cls._from_facts(data)
        if key.text != text:
            raise BadRecord("target is not in canonical form")
        return key

    @classmethod
    def _from_facts(cls, facts: Mapping[str, Any]) -> TargetKey:
        found = ((n, tuple(v) if isinstance(v, list) else v) for n, v in sorted(facts.items()))
        return cls(facts=tuple(found))


_RECORD_KEYS = {
    "kernel", "target", "threads", "schedule", "point", "status", "samples_ns", "detail",
    "strategy", "trial", "generator", "package", "created_ns",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What came of one schedule of one kernel.

    Attributes:
        kernel, target, threads: what it is about.
        schedule: of the kernel in canonical names.
        point: the knobs that gave the schedule; None if it does not come from a space.
        status: see ``Status``.
        samples_ns: pairs of times, the candidate's and the reference's measured beside it [ns].
        detail: for people: an error, a witness; too long a text loses its middle.
        strategy: what proposed the schedule. trial: its place in that run.
        generator: code generator (``current_generator``). package: Nestor's version.
        created_ns: time of the measurement [ns since 1970].
        schedule_text: the schedule as canonical JSON.
    Raises: ``BadRecord`` for anything out of bounds.
    """

    kernel: KernelKey
    target: TargetKey
    threads: int
    schedule: Schedule
    status: Status
    point: Point | None = None
    samples_ns: tuple[tuple[float, float], ...] = ()
    detail: str = ""
    strategy: str = ""
    trial: int = 0
    generator: str = field(default_factory=current_generator)
    package: str = field(default_factory=package_version)
    created_ns: int = field(default_factory=time.time_ns)
    schedule_text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_int("threads", self.threads, 1, MAX_THREADS)
        text = canonical_json(schedule_to_json(check_schedule(self.schedule)))
        object.__setattr__(self, "schedule_text", text)
        if len(self.schedule_text) > MAX_SCHEDULE_CHARS:
            raise BadRecord(f"schedule of more than {MAX_SCHEDULE_CHARS} characters")
        if self.status not in STATUSES:
            raise BadRecord(f"no status {str(self.status)[:40]!r}")
        object.__setattr__(self, "point", _read_point(self.point))
        if len(self.point_text or "") > MAX_POINT_CHARS:
            raise BadRecord(f"point of more than {MAX_POINT_CHARS} characters")
        object.__setattr__(self, "samples_ns", _read_samples(self.samples_ns))
        if self.status == "ok" and not self.samples_ns:
            raise BadRecord("status ok without a sample")
        if not isinstance(self.detail, str):
            raise BadRecord("detail is not a text")
        object.__setattr__(self, "detail", clean_text(self.detail))
        check_text("strategy", self.strategy, MAX_NAME_CHARS)
        check_int("trial", self.trial, 0)
        check_text("generator", self.generator, MAX_NAME_CHARS)
        check_text("package", self.package, MAX_NAME_CHARS)
        check_int("created_ns", self.created_ns, 0, MAX_INT64)

    @property
    def ratio(self) -> float | None:
        """Median of candidate's over reference's time; below 1 is faster. None without samples."""
        return median_ratio(self.samples_ns)

    @property
    def time_ns(self) -> float | None:
        """Median of the candidate's times [ns]."""
        return statistics.median(c for c, _ in self.samples_ns) if self.samples_ns else None

    @property
    def schedule_digest(self) -> str:
        """SHA-256 [hex] of ``schedule_text``."""
        return digest_of(self.schedule_text)

    @property
    def point_text(self) -> str | None:
        """The point as canonical JSON."""
        return None if self.point is None else canonical_json(self.point)

    @property
    def digest(self) -> str:
        """SHA-256 [hex] of everything in the record, the schedule as ``schedule_text``."""
        return digest_of(canonical_json({**self._facts(), "schedule": self.schedule_text}))

    def to_json(self) -> dict[str, Any]:
        """Plain data; kernel and target by their digests."""
        return {**self._facts(), "schedule": schedule_to_json(self.schedule)}

    def _facts(self) -> dict[str, Any]:
        """Everything but the schedule."""
        return {
            "kernel": self.kernel.digest,
            "target": self.target.digest,
            "threads": self.threads,
            "point": self.point,
            "status": self.status,
            "samples_ns": self.samples_ns,
            "detail": self.detail,
            "strategy": self.strategy,
            "trial": self.trial,
            "generator": self.generator,
            "package": self.package,
            "created_ns": self.created_ns,
        }

    @classmethod
    def from_json(cls, data: object, kernel: KernelKey, target: TargetKey) -> Record:
        """Inverse of ``to_json``. Raises: ``BadRecord``."""
        data = check_keys("record", data, _RECORD_KEYS)
        if data["kernel"] != kernel.digest or data["target"] != target.digest:
            raise BadRecord("record is about another kernel or target")
        detail = check_text("detail", data["detail"], MAX_DETAIL_CHARS)
        known = {**data, "kernel": kernel, "target": target, "detail": detail}
        record = cls(**{**known, "schedule": parse_schedule(data["schedule"])})
        check_written(record.schedule_text, data["schedule"])
        return record


def median_ratio(samples_ns: tuple[tuple[float, float], ...]) -> float | None:
    """Median of first over second [1]; None without samples."""
    return statistics.median(c / r for c, r in samples_ns) if samples_ns else None


def _read_samples(samples: object) -> tuple[tuple[float, float], ...]:
    """Pairs of times, from tuples or lists."""
    if not isinstance(samples, tuple | list) or len(samples) > MAX_SAMPLES:
        raise BadRecord(f"samples are not a list of at most {MAX_SAMPLES}")
    pairs = []
    for pair in samples:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise BadRecord("a sample is not a pair of times")
        pairs.append((check_time_ns("time", pair[0]), check_time_ns("time", pair[1])))
    return tuple(pairs)


def _read_point(point: object) -> Point | None:
    """A point with lists as tuples."""
    if point is None:
        return None
    if not isinstance(point, tuple | list):
        raise BadRecord("a point is a list of knobs")
    out = []
    for item in point:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise BadRecord("a knob is a name and a value")
        out.append((check_text("knob", item[0], MAX_NAME_CHARS), _read_knob(item[1], 0)))
    return tuple(out)


def _read_knob(value: object, depth: int) -> Knob:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return check_int("knob", value, -MAX_INT64, MAX_INT64)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadRecord("a knob is not finite")
        return value
    if isinstance(value, str):
        return check_text("knob", value, 1000)
    if isinstance(value, tuple | list) and depth < _MAX_KNOB_DEPTH:
        return tuple(_read_knob(v, depth + 1) for v in value)
    raise BadRecord(f"a knob of type {type(value).__name__}")
