"""What a compilation did, for people (``print(report)``) and programs (``report.to_dict()``).

Plain data: it is made from whatever the driver measured, stored in an artifact's manifest as JSON,
and read back there without any compiler.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nestor.tables import Table, format_bytes, format_seconds, render_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """One generated kernel.

    Attributes:
        name: its name in the model.
        statements: the statements that it computes, in order.
        origins: the operators and lines of the model that they come from.
        schedule: its schedule, as text.
        calls: how often one run of the model calls it.
        check_seconds: how long proving it legal took [s]; None: proved in an earlier compile.
        compile_seconds: how long generating its code took [s]; None: taken from the cache.
        refused: why its schedule was refused and it runs as written; empty: it was not.
    """

    name: str
    statements: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    schedule: str = ""
    calls: int = 1
    check_seconds: float | None = None
    compile_seconds: float | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternReport:
    """An operator without a lowering: PyTorch computes it.

    Attributes:
        operator: its name, e.g. ``aten.sort.default``.
        origin: the line of the model that it comes from.
        count: how often one run of the model calls it.
    """

    operator: str
    origin: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningReport:
    """How tuning in the background stands.

    Attributes:
        state: ``waiting`` (for another model's), ``searching``, ``checking`` (the whole model with
            better kernels), ``finished``, ``stopped`` or ``failed``.
        seconds: since it began, or what it took [s].
        trials: candidates measured.
        swaps: how often better kernels took over.
        refused: how often kernels that are faster alone made the whole model no faster.
        gain: time of the first kernels' model over the present one's, as measured at the swaps.
        expected_gain: part of its kernels' time that the model is hoped to lose by the next trials.
        reason: why it ended.
        warning: what went wrong with it; calls are served as before.
    """

    state: str
    seconds: float = 0.0
    trials: int = 0
    swaps: int = 0
    refused: int = 0
    gain: float = 1.0
    expected_gain: float = 0.0
    reason: str = ""
    warning: str = ""

    def __str__(self) -> str:
        text = f"{self.state}, {self.trials} trials in {format_seconds(self.seconds)}"
        text += f", {self.swaps} swap{'s' * (self.swaps != 1)}, {self.gain:.3f}× the first calls"
        if self.refused:
            text += f", {self.refused} refused: the whole model was no faster"
        text += f"; {self.reason}" if self.reason else ""
        return text + (f"; warning: {self.warning}" if self.warning else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a compilation did.

    Attributes:
        model: the model's name.
        target: the CPU that the code is for.
        threads: threads of a call.
        kernels: the generated kernels, in the order of their first call.
        externs: operators that PyTorch computes; empty in an artifact.
        compile_seconds: phase → time [s], in running order.
        cache_hits: kernels whose object code came from the cache.
        tuned_kernels: kernels with a schedule that a search found, now or earlier.
        tuning_trials: candidates that this compilation measured.
        tuning: how tuning in the background stands; None without.
        arena_bytes: memory for intermediate tensors of one call; None when it depends on a
            dynamic shape and no call was made yet.
        weights_bytes: memory of the (packed) weights, kept as long as the model.
        peak_bytes: memory that one call takes, weights aside: arena, outputs, and copies of inputs
            that were not dense; None as for ``arena_bytes``.
        symbols: dynamic shape parameters, e.g. ``("B in 1..64",)``.
        refused_fusions: which statements were kept apart, and why.
        layouts: tensors that are not stored row by row (or against the rules' wish), and why.
    """

    model: str
    target: str = "native"
    threads: int = 1
    kernels: tuple[KernelReport, ...] = ()
    externs: tuple[ExternReport, ...] = ()
    compile_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    cache_hits: int = 0
    tuned_kernels: int = 0
    tuning_trials: int = 0
    tuning: TuningReport | None = None
    arena_bytes: int | None = None
    weights_bytes: int = 0
    peak_bytes: int | None = None
    symbols: tuple[str, ...] = ()
    refused_fusions: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()

    @property
    def total_compile_seconds(self) -> float:
        """The sum over the phases [s]."""
        return float(sum(self.compile_seconds.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``from_dict`` reads it back to an equal report."""
        data = dataclasses.asdict(self)
        data["compile_seconds"] = dict(self.compile_seconds)
        return {name: _lists(value) for name, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """A report from what ``to_dict`` returned; fields of a newer version are left out."""
        values = _known(cls, data)
        values["kernels"] = tuple(
            KernelReport(**_tuples(_known(KernelReport, k))) for k in data.get("kernels", ())
        )
        values["externs"] = tuple(
            ExternReport(**_known(ExternReport, e)) for e in data.get("externs", ())
        )
        if values.get("tuning") is not None:
            values["tuning"] = TuningReport(**_known(TuningReport, values["tuning"]))
        return cls(**_tuples(values))

    def tables(self, *, schedules: bool = False) -> list[Table]:
        """The tables of the text form; with ``schedules`` each kernel's schedule too."""
        found = [self._summary(), self._kernel_table()]
        if self.externs:
            found.append(self._extern_table())
        if schedules:
            rows = tuple((k.name, k.schedule or "(as written)") for k in self.kernels)
            found.append(Table(title="Schedules", columns=("kernel", "steps"), rows=rows))
            if self.layouts:
                lines = tuple(tuple(line.split(": ", 1)) for line in self.layouts)
                found.append(Table(title="Layouts", columns=("of", "what and why"), rows=lines))
        return found

    def __str__(self) -> str:
        return render_tables(self.tables())

    def _tuning_rows(self) -> list[tuple[str, str]]:
        rows = []
        if self.tuned_kernels or self.tuning_trials:
            trials = f", {self.tuning_trials} trials" if self.tuning_trials else ""
            if not trials and self.tuning is None:
                trials = " in earlier runs"
            rows.append(("tuned", f"{self.tuned_kernels} of {len(self.kernels)} kernels{trials}"))
        if self.tuning is not None:
            rows.append(("tuning", str(self.tuning)))
        return rows

    def _summary(self) -> Table:
        phases = ", ".join(f"{n} {format_seconds(s)}" for n, s in self.compile_seconds.items())
        calls = sum(k.calls for k in self.kernels)
        rows = [
            ("target", f"{self.target}, {self.threads} thread{'s' * (self.threads != 1)}"),
            ("kernels", f"{len(self.kernels)} different, {calls} calls a run"),
            (
                "calls of PyTorch",
                str(sum(e.count for e in self.externs)) if self.externs else "none",
            ),
            ("compile time", f"{format_seconds(self.total_compile_seconds)}  ({phases or '–'})"),
            ("cache hits", f"{self.cache_hits} of {len(self.kernels)}"),
            *self._tuning_rows(),
            ("weights", format_bytes(self.weights_bytes)),
            ("arena", format_bytes(self.arena_bytes)),
            ("peak of a call", format_bytes(self.peak_bytes)),
        ]
        if self.symbols:
            rows.insert(1, ("dynamic", ", ".join(self.symbols)))
        return Table(title=f"Nestor: {self.model}", columns=("", ""), rows=tuple(rows))

    def _kernel_table(self) -> Table:
        rows = tuple(
            (
                kernel.name,
                str(kernel.calls),
                str(len(kernel.statements)),
                "earlier" if kernel.check_seconds is None else format_seconds(kernel.check_seconds),
                "cache"
                if kernel.compile_seconds is None
                else format_seconds(kernel.compile_seconds),
                _shorten(kernel.origins),
            )
            for kernel in self.kernels
        )
        columns = ("kernel", ">calls", ">statements", ">check", ">code", "from")
        return Table(title="Kernels", columns=columns, rows=rows)

    def _extern_table(self) -> Table:
        rows = tuple((e.operator, str(e.count), _shorten((e.origin,))) for e in self.externs)
        caption = "These have no lowering yet: an artifact and strict mode refuse them."
        return Table(
            title="Computed by PyTorch",
            columns=("operator", ">calls", "line"),
            rows=rows,
            caption=caption,
        )


def _shorten(origins: tuple[str, ...]) -> str:
    """The first two origins, files without their folders, and how many there are besides."""
    shown = [_FOLDERS.sub("", origin) for origin in origins[:2]]
    more = f" (+{len(origins) - 2})" if len(origins) > 2 else ""
    return ", ".join(shown) + more


_FOLDERS = re.compile(r"(?<= at )/\S*/(?=[^/\s]+:\d+$)")
"""The folders of ``linear at /home/me/net.py:7``; the JSON form keeps them."""


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    return {name: value for name, value in data.items() if name in names}


def _lists(value: Any) -> Any:
    """Tuples as lists throughout, as JSON has them."""
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, (tuple, list)) else value


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
