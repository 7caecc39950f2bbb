"""What the command line says when something is wrong, and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nestor import cli
from nestor.errors import InternalError, Unsupported, UserError

ROOT = Path(__file__).resolve().parents[2]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and standard error of a command that must print nothing else."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return status, captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "net"], "'net' is not a model: give FILE.pt2, FILE.py:function"),
        (["run", "absent.pt2"], "no file 'absent.pt2'"),
        (["run", "absent.py:make"], "no file 'absent.py'"),
        (["run", "absent_package.net:make"], "no module 'absent_package'"),
        (["run", "benchmarks.absent:make"], "no module 'benchmarks.absent'"),
        (["run", "benchmarks.models:resnet5"], "did you mean resnet50?"),
        (["run", "benchmarks.models:mlp", "--input", "x.npy"], "--input: no file 'x.npy'"),
        (["run", "benchmarks.models:mlp", "--random", "1"], "--random is for artifacts"),
        (["run", "benchmarks.models:mlp", "--threads", "0"], "is not a whole number of at least 1"),
        (["compile", "a.nst", "-o", "b.nst"], "'a.nst' is compiled already"),
        (["compile", "benchmarks.models:mlp", "-o", "no/such/m.nst"], "no folder"),
        (["compile", "benchmarks.models:mlp", "-o", "."], "it is a folder"),
        (["bench", "benchmarks.models:mlp", "--peers", "eagre"], "no peer 'eagre'; there are:"),
        (["bench", "benchmarks.models:mlp", "--rounds", "0"], "--rounds 0 is not at least 1"),
        (["bench", "m.nst", "--peers", "eager"], "an artifact has no peers"),
    ],
)
def test_user_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = run(arguments, capsys)
    assert status == 2
    assert message in text


def test_a_missing_argument_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(["compile", "net.py:make"], capsys)
    assert status == 2
    assert "-o/--output" in text
    assert "nestor compile net.py:make -o net.nst" in text


def test_an_unknown_variable_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NESTOR_WORKER", "2")
    status, text = run(["doctor"], capsys)
    assert status == 2
    assert "unknown variable NESTOR_WORKER; did you mean NESTOR_WORKERS?" in text


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("what"), 2, "UserError: what\n"),
        (Unsupported("an op"), 3, "Unsupported: an op\n"),
        (InternalError("oh", reproducer="/r"), 4, "InternalError: oh\n  reproduce: /r\n"),
        (ZeroDivisionError("x"), 4, "InternalError: ZeroDivisionError: x\n  this is a fault"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_each_family_has_its_exit_status(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> int:
        raise error

    assert cli.run_guarded(action) == status
    assert capsys.readouterr().err.startswith(message)


def test_the_trace_is_shown_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NESTOR_DEBUG", "all")
    assert cli.main(["run", "net"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_model_whose_module_fails_to_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text("def make(:\n")
    status, text = run(["run", f"{tmp_path}/bad.py:make"], capsys)
    assert status == 2
    assert "bad.py:1: " in text
    (tmp_path / "needs.py").write_text("import a_package_that_is_not_there\n")
    status, text = run(["run", f"{tmp_path}/needs.py:make"], capsys)
    assert status == 2
    assert "needs a module that is not installed: a_package_that_is_not_there" in text


def test_a_function_that_fails_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fails.py").write_text("def make():\n    return 1 / 0\n")
    status, text = run(["run", f"{tmp_path}/fails.py:make"], capsys)
    assert status == 2
    assert "fails.py:make failed: ZeroDivisionError: division by zero" in text
    assert "fails.py:2" in text


def test_a_function_that_returns_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.py").write_text("def make():\n    return 7\n")
    status, text = run(["run", f"{tmp_path}/wrong.py:make"], capsys)
    assert status == 2
    assert "returned int, not (model, example_inputs)" in text


def test_a_closed_pipe_is_no_error() -> None:
    """``nestor … | head`` ends without a message."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "nestor", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=False,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
