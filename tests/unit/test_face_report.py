"""The report: plain data in, tables and JSON out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nestor.report import ExternReport, KernelReport, Report
from nestor.tables import Table, format_bytes, format_seconds, render_tables

ROOT = Path(__file__).resolve().parents[2]

REPORT = Report(
    model="Net",
    target="native",
    threads=2,
    kernels=(
        KernelReport(
            name="linear_gelu",
            statements=("linear", "gelu"),
            origins=("linear at /home/me/net.py:7", "gelu at net.py:8", "add at net.py:9"),
            schedule="tile(m, 8); vectorize(n)",
            calls=12,
            check_seconds=0.0123,
        ),
        KernelReport(name="softmax", statements=("softmax",), compile_seconds=0.25),
    ),
    externs=(ExternReport(operator="aten.sort.default", origin="net.py:11"),),
    compile_seconds={"export": 1.5, "kernels": 2.25},
    cache_hits=1,
    arena_bytes=3 * 1024 * 1024,
    weights_bytes=100,
    symbols=("B in 1..64",),
)


def test_to_dict_survives_json() -> None:
    data = REPORT.to_dict()
    assert Report.from_dict(json.loads(json.dumps(data))) == REPORT
    assert data["peak_bytes"] is None
    assert data["kernels"][0]["calls"] == 12


def test_from_dict_leaves_out_what_a_newer_version_added() -> None:
    data = REPORT.to_dict() | {"measured_watts": 7}
    data["kernels"] = [k | {"predicted_ns": 1} for k in data["kernels"]]
    assert Report.from_dict(data) == REPORT


def test_text_names_what_matters() -> None:
    text = str(REPORT)
    for part in ("Net", "13 calls a run", "3.75 s", "1 of 2", "3.0 MiB", "aten.sort.default",
                 "net.py:11", "12.3 ms", "earlier", "cache", "(+1)", "B in 1..64"):  # fmt: skip
        assert part in text, part


def test_folders_are_left_out_of_the_table_but_not_of_the_data() -> None:
    assert "linear at net.py:7" in str(REPORT)
    assert "/home/me/net.py:7" in REPORT.to_dict()["kernels"][0]["origins"][0]


def test_schedules_are_shown_on_request() -> None:
    assert "vectorize(n)" in render_tables(REPORT.tables(schedules=True))
    assert "vectorize(n)" not in str(REPORT)


def test_plain_text_where_rich_is_missing() -> None:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from nestor.tables import Table\n"
        "print(Table(title='T', columns=('name', '>n'), rows=(('a', '1'), ('bb', '22'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "T\nname   n\n----  --\na      1\nbb    22\n"


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 in a table of 2"):
        Table(columns=("a", "b"), rows=(("1",),))


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.00 GiB")],
)
def test_sizes(count: int | None, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (3e-8, "30 ns"), (2e-6, "2 µs"), (0.0123, "12.3 ms"), (1.5, "1.5 s"),
     (125, "2 min 5 s")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text
