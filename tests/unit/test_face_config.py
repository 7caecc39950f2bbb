"""Settings: where they come from, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nestor.config import DEBUG_KINDS, Config, default_cache_dir
from nestor.errors import UserError


def test_defaults() -> None:
    config = Config.load({"XDG_CACHE_HOME": "/somewhere"})
    assert config.cache_dir == Path("/somewhere/nestor")
    assert config.target == "native"
    assert config.debug == ()
    assert config.worker_count() >= 1


def test_a_relative_cache_home_is_ignored_as_the_specification_says() -> None:
    assert default_cache_dir({"XDG_CACHE_HOME": "here"}) == Path.home() / ".cache" / "nestor"


def test_an_argument_wins_over_a_variable() -> None:
    environ = {"NESTOR_THREADS": "3", "NESTOR_WORKERS": "4", "NESTOR_CACHE_DIR": "/c"}
    config = Config.load(environ, threads=5, workers=None)
    assert (config.threads, config.workers, config.cache_dir) == (5, 4, Path("/c"))
    assert config.thread_count() == 5


def test_an_unknown_variable_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"NESTOR_THREAD; did you mean NESTOR_THREADS\?"):
        Config.load({"NESTOR_THREAD": "3"})


def test_an_unknown_argument_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no setting 'worker'; did you mean workers\?"):
        Config.load({}, worker=3)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"NESTOR_THREADS": "0"}, "NESTOR_THREADS='0' is not a whole number of at least 1"),
        ({"NESTOR_WORKERS": "two"}, "NESTOR_WORKERS='two'"),
        ({"NESTOR_DEBUG": "pases"}, r"no kind 'pases'.*did you mean passes\?"),
        ({"NESTOR_LOG": "loud"}, "NESTOR_LOG='loud' is not one of"),
        ({"NESTOR_CACHE_DIR": ""}, "NESTOR_CACHE_DIR is empty"),
    ],
)
def test_bad_values_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config.load(environ)


def test_debug_kinds() -> None:
    assert Config.load({"NESTOR_DEBUG": "code, passes"}).debug == ("passes", "code")
    assert Config.load({"NESTOR_DEBUG": "all"}).debug == DEBUG_KINDS


def test_the_cache_key_follows_the_mark_on_each_field() -> None:
    base = Config(threads=2)
    changed = {"target": "x86-64-v3", "threads": 7, "workers": 9, "cache_dir": Path("/x"),
               "cache": "sqlite:////x", "ray": "auto", "cost_model": Path("/z"),
               "debug": ("code",), "debug_dir": Path("/y"),
               "log": "debug"}  # fmt: skip
    for field in dataclasses.fields(Config):
        other = dataclasses.replace(base, **{field.name: changed[field.name]})
        differs = other.code_key() != base.code_key()
        assert differs == field.metadata["affects_code"], field.name


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().threads = 3  # type: ignore[misc]
