"""What a pass is given: the target, options, and a log of what was changed or refused and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nestor.passes.knobs import Choices

LogKind = Literal["changed", "refused"]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One decision of a pass.

    Attributes:
        pass_name: the pass's function name.
        kind: whether the pass did it or refused to.
        subject: the statement or tensor it is about.
        reason: why, in words.
    """

    pass_name: str
    kind: LogKind
    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.kind} {self.subject}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOptions:
    """Settings of the passes; each may change generated code.

    Attributes:
        max_inline_nodes: largest expression that inlining may build [nodes].
        max_hoisted_growth: a hoisted result may be this many times its inputs' bytes.
        max_hoisted_bytes: results up to this size are hoisted whatever their growth [bytes].
        max_scaled_copy_bytes: a weight that is also used elsewhere is scaled into a second copy
            only up to this size [bytes].
        min_channels: fewest channels for which a convolution asks for channels-last.
        least_window_gain: estimated gain from which a sliding window of three is transformed
            (``transform_windows``); 0 transforms every one that may be.
        min_relayout_rows: fewest reuses of an operand that pay for a transposed copy of it.
        mask_tile: rows and terms of the blocks in which a mask leaves out terms; None: those of the
            target's register tiles.
        disabled: names of passes to skip.
    """

    max_inline_nodes: int = 300
    max_hoisted_growth: float = 1.5
    max_hoisted_bytes: int = 1 << 23
    max_scaled_copy_bytes: int = 1 << 20
    min_channels: int = 8
    least_window_gain: float = 1.1
    min_relayout_rows: int = 8
    mask_tile: tuple[int, int] | None = None
    disabled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PassContext:
    """Handed to every pass; only the log, the timings and the choices asked for grow.

    Attributes:
        target: a ``nestor.target`` description, or None where none is known.
        options: settings of the passes.
        config: the caller's configuration, carried along; no pass reads it.
        debug: keep the Program after each pass that changed it.
        choices: decides what rules leave open. Knobs are named after a decision and the shapes it
            is about, so that equal layers decide alike, whatever they are called.
        log: decisions, in the order they were made.
        timings_s: seconds spent per pass name.
        dumps: (pass name, Program text) after each pass that changed something, with ``debug``.
    """

    target: Any = None
    options: PassOptions = field(default_factory=PassOptions)
    config: Any = None
    debug: bool = False
    choices: Choices = field(default_factory=Choices)
    log: list[LogEntry] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)
    dumps: list[tuple[str, str]] = field(default_factory=list)

    def changed(self, pass_name: str, subject: str, reason: str) -> None:
        """Record that a pass rewrote ``subject``."""
        self.log.append(LogEntry(pass_name, "changed", subject, reason))

    def refused(self, pass_name: str, subject: str, reason: str) -> None:
        """Record that a pass left ``subject`` as it was."""
        self.log.append(LogEntry(pass_name, "refused", subject, reason))

    def entries(self, *pass_names: str, kind: LogKind | None = None) -> Sequence[LogEntry]:
        """Log entries of the passes named (all if none), of one kind if given."""
        return [
            e
            for e in self.log
            if (not pass_names or e.pass_name in pass_names) and (kind is None or e.kind == kind)
        ]
