"""The command line: what a model may be, arrays in and out, what is parsed."""

from __future__ import annotations

import json
import shlex
import stat
from pathlib import Path

import numpy as np
import pytest

from nestor import cli
from nestor.cli_inputs import describe_array, read_inputs, write_arrays
from nestor.cli_models import load_model
from nestor.errors import OutputError, UserError

NET = """
import torch
from helper import WIDTH

def make():
    return torch.nn.Linear(WIDTH, 2), (torch.ones(1, WIDTH),)

def with_shapes():
    model, inputs = make()
    return model, inputs, ({0: "batch"},)

def single():
    return torch.nn.ReLU(), torch.ones(3)

def wrong():
    return 7
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "helper.py").write_text("WIDTH = 5\n")
    return str(tmp_path / "net.py")


def test_a_function_of_a_file(net: str) -> None:
    named = load_model(f"{net}:make")
    assert named.name == "make"
    assert tuple(named.model(*named.inputs).shape) == (1, 2)
    assert named.dynamic_shapes is None


def test_a_function_may_name_dynamic_shapes(net: str) -> None:
    assert load_model(f"{net}:with_shapes").dynamic_shapes == ({0: "batch"},)


def test_one_input_needs_no_tuple(net: str) -> None:
    assert len(load_model(f"{net}:single").inputs) == 1


def test_a_function_of_a_module() -> None:
    named = load_model("benchmarks.models:mlp")
    assert tuple(named.model(*named.inputs).shape) == (1, 10)


def test_a_saved_program(tmp_path: Path) -> None:
    import torch

    program = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(4, 3),))
    torch.export.save(program, tmp_path / "net.pt2")
    named = load_model(str(tmp_path / "net.pt2"))
    assert (named.name, tuple(named.inputs[0].shape)) == ("net", (4, 3))


def test_arrays_survive_a_file(tmp_path: Path) -> None:
    first, second = np.arange(6.0).reshape(2, 3), np.array([True, False])
    write_arrays(str(tmp_path / "one.npy"), [first])
    write_arrays(str(tmp_path / "two.npz"), [first, second])
    files = [str(tmp_path / "two.npz"), str(tmp_path / "one.npy")]
    back = read_inputs(files)
    for got, expected in zip(back, [first, second, first], strict=True):
        np.testing.assert_array_equal(got, expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.npy", "two.npz"]


def test_outputs_that_do_not_fit_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds one array, and there are 2"):
        write_arrays(str(tmp_path / "y.npy"), [np.zeros(1), np.zeros(1)])
    with pytest.raises(UserError, match=r"must end in \.npy or \.npz"):
        write_arrays(str(tmp_path / "y.txt"), [np.zeros(1)])
    with pytest.raises(OutputError, match="cannot write"):
        write_arrays(str(tmp_path / "nowhere" / "y.npy"), [np.zeros(1)])
    assert not list(tmp_path.iterdir())


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"is not a \.npy or \.npz of arrays"):
        read_inputs([str(tmp_path / "evil.npy")])


def test_figures_of_an_output() -> None:
    about = describe_array(1, np.array([[1.0, 3.0]], dtype=np.float32))
    assert about == {
        "output": 1, "shape": [1, 2], "dtype": "float32", "min": 1.0, "max": 3.0, "mean": 2.0,
    }  # fmt: skip
    assert "min" not in describe_array(0, np.zeros((0, 3)))


@pytest.mark.parametrize("command", ["compile", "run", "bench", "tune", "explain", "doctor"])
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  nestor {command} " in text
    assert "--json" in text


def test_the_example_of_each_command_parses() -> None:
    parser = cli.build_parser()
    actions = next(a for a in parser._actions if a.dest == "command").choices
    assert set(actions) == {
        "compile",
        "run",
        "bench",
        "tune",
        "train",
        "explain",
        "cache",
        "doctor",
    }
    for sub in actions.values():
        words = shlex.split(sub.epilog.splitlines()[-1])
        assert words[0] == "nestor"
        assert ":" in parser.parse_args(words[1:]).handler


def test_doctor_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nestor import cli_doctor

    # The self-test compiles; it has a test of its own below.
    healthy = cli_doctor.Check(name="self-test", state="ok", detail="")
    monkeypatch.setattr(cli_doctor, "_self_test", lambda: healthy)
    assert cli.main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["healthy"] is True
    assert {"python", "numpy", "cpu", "threads", "cache"} <= {c["name"] for c in data["checks"]}


def test_doctor_reports_a_check_that_breaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nestor import cli_doctor

    def broken() -> cli_doctor.Check:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(cli_doctor, "_self_test", broken)
    assert cli.main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["healthy"] is False
    assert "no such luck" in data["checks"][-1]["detail"]


def test_doctor_sees_a_cache_that_others_may_write_to(tmp_path: Path) -> None:
    from nestor.cli_doctor import _cache

    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o700)
    assert _cache(folder).state == "ok"
    folder.chmod(folder.stat().st_mode | stat.S_IWOTH)
    assert "not trusted" in _cache(folder).detail


def test_doctor_compiles_and_runs() -> None:
    from nestor.cli_doctor import _self_test

    check = _self_test()
    assert check.state == "ok", check
    assert "compiled, saved, loaded and run" in check.detail
