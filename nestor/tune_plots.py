"""The plots of a search's report, as SVG to stand within HTML; drawn by matplotlib."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

from nestor.errors import UserError

if TYPE_CHECKING:
    from nestor.tune_report import KernelHistory, TuneReport

_NAMED = 9
"""Kernels that have a colour and a name of their own; the others are grey."""

_GREY = "#b0b0b0"


def check_plotting() -> None:
    """Raise ``UserError`` where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "plots need matplotlib, which is not installed\nfix: pip install 'nestor[plot]'"
        )


def plot_best(report: TuneReport) -> str:
    """Best so far against trials: every kernel's speed, and the whole model's time."""
    figure, (speeds, whole) = _figure(2, (9, 6.4), sharex=True)
    last = max(report.trials, 1)
    for place, kernel in enumerate(report.kernels):
        if not kernel.trials:
            continue
        colour, label = _paint(place, kernel)
        points = [(0, 1.0), *kernel.best, (last, kernel.best[-1][1] if kernel.best else 1.0)]
        speeds.step(*zip(*points), where="post", color=colour, label=label)
        if kernel.again:
            speeds.plot(*zip(*kernel.again), "o", markersize=4, color=colour)
    speeds.set_ylabel("speed over default")
    points = [*report.whole, (last, report.whole[-1][1])]
    whole.step([x for x, _ in points], [y / 1e6 for _, y in points], where="post", color="#222")
    whole.set_ylim(bottom=0)
    whole.set_ylabel("all kernels of a call [ms]")
    whole.set_xlabel("trials")
    for axes in (speeds, whole):
        if 0 < report.remembered < report.trials:
            axes.axvline(report.remembered, color="#888", linestyle="--", linewidth=1)
    _legend(speeds)
    return _svg(figure, "best")


def plot_roofline(report: TuneReport) -> str:
    """Each kernel's throughput over its operations a byte, below what the machine can do."""
    figure, (axes,) = _figure(1, (9, 4.8))
    points = [(p, k) for p, k in enumerate(report.kernels) if k.flops and k.bytes and k.default_ns]
    intensities = [k.flops / k.bytes for _, k in points]
    span = min([0.05, *intensities]) / 2, max([100.0, *intensities]) * 2
    for name, gbps in report.gbps:
        ridge = report.peak_gflops / gbps
        ends = (span[0], min(ridge, span[1]))
        axes.plot(ends, [gbps * x for x in ends], color="#888", linewidth=1)
        axes.annotate(f" {name}", (span[0], gbps * span[0]), color="#666", fontsize=8)
    axes.axhline(report.peak_gflops, color="#888", linewidth=1)
    for (place, kernel), x in zip(points, intensities, strict=True):
        colour, label = _paint(place, kernel)
        default = kernel.flops / kernel.default_ns
        axes.plot((x, x), (default, default * kernel.speed), color=colour, linewidth=1)
        axes.plot(x, default, "o", color=colour, markerfacecolor="white")
        axes.plot(x, default * kernel.speed, "o", color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlim=span, xlabel="operations a byte")
    axes.set_ylabel("10⁹ operations a second")
    _legend(axes)
    return _svg(figure, "roofline")


def plot_predictions(report: TuneReport) -> str:
    """What the cost model expected of each schedule against what was measured."""
    figure, (axes,) = _figure(1, (6.4, 5.4))
    everything: list[float] = []
    for place, kernel in enumerate(report.kernels):
        if not kernel.predictions:
            continue
        colour, label = _paint(place, kernel)
        axes.plot(*zip(*kernel.predictions), ".", color=colour, label=label, alpha=0.6)
        everything += (v for pair in kernel.predictions for v in pair)
    span = min(everything), max(everything)
    axes.plot(span, span, color="#888", linewidth=1, linestyle="--")
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("predicted speed over default")
    axes.set_ylabel("measured speed over default")
    _legend(axes)
    return _svg(figure, "predictions")


def _paint(place: int, kernel: KernelHistory) -> tuple[str, str]:
    """Colour and name; a name that begins with an underscore is not in the legend."""
    if place >= _NAMED:
        return _GREY, "_other"
    return f"C{place}", f"{kernel.name} {kernel.label}"[:36].rstrip()


def _figure(rows: int, size: tuple[float, float], **more: Any) -> tuple[Any, tuple[Any, ...]]:
    check_plotting()
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")  # no global state, as pyplot has
    axes = figure.subplots(rows, 1, squeeze=False, **more)[:, 0]
    for one in axes:
        one.grid(visible=True, color="#eee")
        one.set_axisbelow(True)
    return figure, tuple(axes)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _svg(figure: Any, name: str) -> str:
    """The figure's text, equal for equal reports; ``name`` keeps its marks apart from others'."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
