"""What ``nestor explain`` says when something is wrong, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nestor import cli

KERNELS = "tests.helpers.explain_kernels"

SOURCE = """
import nestor

def plain(x):
    return x

class Thing:
    pass

@nestor.kernel
def scale(x: nestor.f64["N"]):
    for i in range(N):
        x[i] = 2.0 * x[i]
"""

UNSUPPORTED = """
import nestor

@nestor.kernel
def halves(x: nestor.f64["N"]):
    i = 0
    while i < N:
        x[i] = 0.0
"""


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and standard error of a command that must print nothing else."""
    try:
        status = cli.main(["explain", *arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return status, captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jacobi"], "'jacobi' is not a kernel: give FILE.py:function"),
        (["absent.py:jacobi"], "no file 'absent.py'"),
        (["tests.helpers.absent:jacobi"], "no module 'tests.helpers.absent'"),
        ([f"{KERNELS}:jacoby"], "did you mean jacobi?"),
        ([f"{KERNELS}:time_skewed"], "is a function, not a kernel\n  fix: put @nestor.kernel"),
        ([f"{KERNELS}:Tile"], "is a class, not a kernel"),
        ([f"{KERNELS}:beyond"], "is always outside its array"),
        ([f"{KERNELS}:jacobi", "--sizes", "N"], "'N' is not a size; give NAME=NUMBER"),
        ([f"{KERNELS}:jacobi", "--sizes", "N=-1"], "'N=-1' is not a size"),
        ([f"{KERNELS}:jacobi", "--sizes", "N=1,N=2"], "N is given twice"),
        ([f"{KERNELS}:jacobi", "--sizes", "Q=1"], "has no size 'Q'; its sizes are T, N"),
        ([f"{KERNELS}:jacobi", "--try", "Tiled(loop='t')"], "did you mean Tile?"),
        ([f"{KERNELS}:jacobi", "--schedule", "absent.json"], "--schedule: no file 'absent.json'"),
        (
            [f"{KERNELS}:jacobi", "--schedule", "a.json", "--as-written"],
            "--schedule and --as-written exclude each other",
        ),
        ([f"{KERNELS}:jacobi", "--picture", "out.png"], "'out.png' must end in .svg"),
        ([f"{KERNELS}:jacobi", "--picture", "no/such/out.svg"], "no folder"),
        ([f"{KERNELS}:jacobi", "--statement", "S0"], "--statement is for --picture FILE.svg"),
        ([f"{KERNELS}:jacobi", "--picture-sizes", "N=3"], "--picture-sizes is for --picture"),
        ([f"{KERNELS}:jacobi", "--lines", "-1"], "--lines -1 is not at least 0"),
        ([f"{KERNELS}:jacobi", "--target", "z80"], "z80"),
    ],
)
def test_user_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = run(arguments, capsys)
    assert status == 2
    assert message in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("7", "holds no list of steps"),
        ('{"steps": []}', "holds no list of steps"),
        ("[1]", "holds no list of steps"),
        ('[{"step": "Tiles"}]', "no step is called 'Tiles'"),
        ('[{"step": "Tile", "loop": "i", "width": 3}]', "Tile has no {'width'}"),
        ('[{"step": "Tile", "loop": "i"}]', "missing 1 required keyword-only argument: 'size'"),
        ('[{"step": "Arrange", "tree": {"leef": "S0"}}]', "no schedule tree"),
    ],
)
def test_a_schedule_file_that_holds_no_schedule(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "schedule.json"
    file.write_text(content)
    status, text = run([f"{KERNELS}:jacobi", "--schedule", str(file)], capsys)
    assert status == 2
    assert message in text and str(file) in text


def test_files_of_the_users_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "other.py").write_text(UNSUPPORTED)
    status, text = run([f"{tmp_path}/mine.py:plain"], capsys)
    assert status == 2 and "is a function, not a kernel" in text
    status, text = run([f"{tmp_path}/other.py:halves"], capsys)
    assert status == 3
    assert "while" in text and "other.py:7" in text and "^" in text
    assert cli.main(["explain", f"{tmp_path}/mine.py:scale", "--json", "--as-written"]) == 0
    assert json.loads(capsys.readouterr().out)["kernel"] == "scale"


def test_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.svg"
    status, text = run([f"{KERNELS}:line", "--as-written", "--picture", str(file)], capsys)
    assert status == 3 and "no statement of depth two or three to draw" in text
    assert not file.exists()


def test_a_refusal_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    step = "Reverse(loop='i')"
    status = cli.main(["explain", f"{KERNELS}:seidel", "--as-written", "--try", step])
    text = capsys.readouterr().out
    assert status == 0
    assert "Refused: Reverse(loop='i')\n  IllegalSchedule:" in text
    assert "S0[i=" in text and "A[" in text


def test_what_json_prints_can_be_given_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    picture = tmp_path / "out.svg"
    again = ["explain", f"{KERNELS}:jacobi", "--json"]
    assert cli.main([*again, "--sizes", "T=100,N=1000", "--picture", str(picture)]) == 0
    file.write_text(capsys.readouterr().out)
    assert picture.read_text().startswith("<svg")
    assert cli.main([*again, "--schedule", str(file)]) == 0
    first, second = json.loads(file.read_text()), json.loads(capsys.readouterr().out)
    assert second["schedule"] == first["schedule"] and second["after"] == first["after"]
    assert second["order"] == "given"
