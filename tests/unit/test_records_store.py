"""The records database: what goes in comes out, doubles do not, and the best is found."""

from __future__ import annotations

import dataclasses
import json
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestor.autotune.records import BadRecord, KernelKey, Record, Records, TargetKey
from nestor.autotune.records.checking import step_checks
from nestor.config import Config
from nestor.errors import UserError
from nestor.ir.parser import parse_affine
from nestor.ir.schedule import STEPS, Arrange, Promote, Tile, schedule_to_json
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence
from tests.helpers.record_samples import CPU, GENERATOR, KERNEL, TARGET, matmul, sample, tiled


@pytest.fixture
def records(tmp_path: Path):
    with Records.open(tmp_path / "records.db", strict=True) as opened:
        yield opened


def best(records: Records, **changes):
    asked = {"kernel": KERNEL.digest, "target": TARGET.digest, "threads": 2, **changes}
    return records.best(**{"generator": GENERATOR, **asked})


# ------------------------------------------------------------------------------------- keys


def test_names_do_not_matter_and_sizes_do():
    assert matmul(64, 96, 128, "XYZ") == KERNEL
    other = matmul(64, 96, 256)
    assert other.digest != KERNEL.digest
    assert other.family == KERNEL.family
    assert other.operations == 2 * KERNEL.operations
    # A dimension of one changes what can be done.
    assert matmul(1, 96, 128).family != KERNEL.family


def test_a_kernels_text_gives_the_key_back():
    assert KernelKey.parsed(KERNEL.text) == KERNEL
    assert KernelKey.of(KERNEL.program()) == KERNEL


@pytest.mark.parametrize(
    "text",
    ["", "program", "program x() {", KERNEL.text + " ", KERNEL.text.replace("t0", "u0"), 7, None],
)
def test_other_texts_are_no_kernels(text):
    with pytest.raises(BadRecord):
        KernelKey.parsed(text)


def test_a_target_is_what_times_depend_on():
    assert TargetKey.of(dataclasses.replace(CPU, ghz=9.0, memory_gbps=1.0)) == TARGET
    assert TargetKey.of(dataclasses.replace(CPU, l2_bytes=1)).digest != TARGET.digest
    assert TargetKey.parsed(TARGET.text) == TARGET
    for bad in ("{}", "[]", '{"b":1,"a":2}', '{"a":1.5}', '{"a":[1]}', '{"a":{}}', "x", None):
        with pytest.raises(BadRecord):
            TargetKey.parsed(bad)


# ------------------------------------------------------------------------------------- records


def test_round_trip(records, tmp_path):
    some = [
        sample(8),
        sample(16, status="crashed", samples_ns=(), detail="signal 11", point=None),
        sample(32, schedule=(), detail="ä → 漢字 🙂"),
    ]
    assert records.add_many(some) == 3
    assert records.history(KERNEL.digest) == some
    with Records.open(tmp_path / "records.db") as again:
        assert again.history(KERNEL.digest) == some
        assert list(again.iterate()) == some
        assert again.skipped == 0


def test_adding_twice_adds_once(records):
    assert records.add(sample(8))
    assert not records.add(sample(8))
    assert records.add(sample(8, created_ns=5))
    assert len(records.history(KERNEL.digest)) == 2


def test_history_chooses(records):
    records.add_many(
        [sample(1), sample(2, threads=1), sample(4, status="timeout", samples_ns=()), sample(8)]
    )
    sizes = lambda found: [r.trial for r in found]  # noqa: E731
    assert sorted(sizes(records.history(KERNEL.digest))) == [1, 2, 4, 8]
    assert sizes(records.history(KERNEL.digest, threads=1)) == [2]
    assert sizes(records.history(KERNEL.digest, statuses=("timeout",))) == [4]
    assert len(records.history(KERNEL.digest, limit=2)) == 2
    assert records.history(KERNEL.digest, target="0" * 64) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 0},
        {"threads": True},
        {"threads": 10**9},
        {"status": "fine"},
        {"samples_ns": ()},
        {"samples_ns": ((1.0, 0.0),)},
        {"samples_ns": ((float("nan"), 1.0),)},
        {"samples_ns": ((float("inf"), 1.0),)},
        {"samples_ns": ((1.0, -1.0),)},
        {"samples_ns": ((1.0,),)},
        {"samples_ns": ((1.0, 1.0),) * 5000},
        {"samples_ns": (("1", 1.0),)},
        {"point": (("tile", float("nan")),)},
        {"point": (("tile", {"a": 1}),)},
        {"point": (("x" * 101, 1),)},
        {"point": (("x", "y" * 999),) * 99},
        {"point": 7},
        {"schedule": [Tile(loop="S0.i0", size=8)]},
        {"schedule": (Tile(loop=5, size=8),)},
        {"schedule": (Tile(loop="S0.i0", size="8"),)},
        {"schedule": (Tile(loop="S0.i0", size=True),)},
        {"schedule": (Tile(loop="S0.i0", size=2**40),)},
        {"schedule": (Promote(tensor="t0", loop="S0.i0", scope="arena"),)},
        {"schedule": ("Tile",)},
        {"schedule": tuple(Tile(loop="x" * 900, size=8) for _ in range(400))},
        {"strategy": "x" * 101},
        {"generator": "a\0b"},
        {"generator": "\ud800"},
        {"trial": -1},
        {"created_ns": 2**63},
        {"detail": b"bytes"},
    ],
)
def test_a_record_out_of_bounds_cannot_be_made(changes):
    with pytest.raises(BadRecord):
        sample(8, **changes)


def test_detail_is_made_to_fit(records):
    record = sample(8, detail="begin" + "\0\ud800" * 9999 + "end")
    assert len(record.detail) <= 4000
    assert record.detail.startswith("begin") and record.detail.endswith("end")
    assert records.add(record)
    assert records.history(KERNEL.digest) == [record]


def test_every_step_is_understood():
    for step in STEPS.values():
        assert {name for name, _ in step_checks(step)} == {f.name for f in dataclasses.fields(step)}


def arranged():
    """A schedule with a tree."""
    loop = BandLoop(name="t", rows=(("S0", parse_affine("i0 + 2*i1")),))
    tree = Sequence(children=(Band(loops=(loop,), child=Leaf(statement="S0"), permutable=True),))
    return (Arrange(tree=tree), Tile(loop="t", size=4))


@pytest.mark.parametrize("schedule", [(), tiled(8), arranged()])
def test_schedules_are_read_strictly(schedule):
    record = sample(8, schedule=schedule)
    assert schedule_to_json(schedule) == record.to_json()["schedule"]
    assert Record.from_json(record.to_json(), KERNEL, TARGET) == record


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        [1],
        [{"step": "Rewrite"}],
        [{"step": "Tile"}],
        [{"step": "Tile", "loop": "a", "size": 8, "more": 1}],
        [{"step": "Tile", "loop": "a", "size": 8.0}],
        [{"step": "Tile", "loop": ["a"], "size": 8}],
        [{"step": "Tile", "loop": "a\nb", "size": 8}],
        [{"step": "Interchange", "loops": "ab"}],
        [{"step": "Interchange", "loops": [["a"]]}],
        [{"step": "Pack", "tensor": "t", "order": [0], "dims": [0], "blocks": ["8"]}],
        [{"step": "Arrange", "tree": {"leaf": 5}}],
        [{"step": "Arrange", "tree": {"leaf": "S0", "more": 1}}],
        [{"step": "Arrange", "tree": {"band": [], "permutable": 1, "child": {"leaf": "S0"}}}],
        [{"step": "Arrange", "tree": {"band": [{"name": "t", "rows": {"S": "__import__('os')"}}]}}],
        [{"step": "__class__", "loop": "a"}],
    ],
)
def test_odd_schedules_are_refused(data):
    with pytest.raises(BadRecord, match="schedule"):
        Record.from_json({**sample(8).to_json(), "schedule": data}, KERNEL, TARGET)


_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(field=st.sampled_from(sorted(sample(8).to_json())), value=_DATA)
def test_any_data_is_a_record_or_refused(field, value):
    """Whatever stands in one field: refused, or a record that says the same again."""
    data = {**json.loads(json.dumps(sample(8).to_json())), field: value}
    try:
        record = Record.from_json(data, KERNEL, TARGET)
    except BadRecord:
        return
    assert json.loads(json.dumps(record.to_json())) == data


@given(place=st.integers(0, len(KERNEL.text) - 1), to=st.sampled_from("0 17{}[]<+*:_%#\nxS"))
def test_any_text_is_a_kernel_or_refused(place, to):
    text = KERNEL.text[:place] + to + KERNEL.text[place + 1 :]
    try:
        key = KernelKey.parsed(text)
    except BadRecord:
        return
    assert key.text == text


# ------------------------------------------------------------------------------------- best


def test_best_has_the_least_ratio(records):
    assert best(records) is None
    records.add_many([sample(8, 0.5), sample(16, 0.3), sample(32, 0.4)])
    assert best(records).trial == 16
    assert best(records, threads=1) is None
    assert best(records, target="f" * 64) is None


def test_what_was_ever_wrong_is_out(records):
    records.add_many([sample(8, 0.5), sample(16, 0.3)])
    records.add(sample(16, status="wrong", samples_ns=()))
    assert best(records).trial == 8
    # Of another generator, or only slow once: that says nothing.
    records.add(sample(8, status="crashed", samples_ns=(), generator="llvm other"))
    records.add(sample(8, status="timeout", samples_ns=()))
    assert best(records).trial == 8


def test_one_lucky_measurement_does_not_win(records):
    records.add(sample(8, 0.2))
    records.add_many([sample(8, 0.6, created_ns=n) for n in range(5)])
    records.add(sample(16, 0.5))
    assert best(records).trial == 16


def test_other_generators_are_seeds(records):
    records.add_many(
        [
            sample(8, 0.1, generator="llvm old", created_ns=1),
            sample(16, 0.2, generator="llvm older", created_ns=2),
            sample(32, 0.3, generator="llvm older", created_ns=3),
        ]
    )
    assert best(records) is None
    asked = KERNEL.digest, TARGET.digest, 2
    assert [r.trial for r in records.seeds(*asked, generator=GENERATOR)] == [16, 8]
    assert [r.trial for r in records.seeds(*asked, generator="llvm old")] == [16]


def test_similar_kernels_come_by_their_work(records):
    near, far, odd = matmul(64, 96, 256), matmul(64, 96, 4096), matmul(1, 96, 128)
    for n, kernel in enumerate((far, near, odd)):
        records.add(sample(8 + n, kernel=kernel))
    found = records.similar(KERNEL, TARGET.digest, 2, generator=GENERATOR)
    assert [r.kernel for r in found] == [near, far]
    assert records.family(near) == [far]


def test_listing(records):
    records.add_many([sample(8, 0.5), sample(16, status="memory", samples_ns=())])
    records.add(sample(8, kernel=matmul(2, 3, 4), created_ns=1))
    first, second = records.kernels()
    assert (first.kernel, first.records, first.measured) == (KERNEL, 2, 1)
    assert first.best_ratio == pytest.approx(0.5)
    assert second.kernel == matmul(2, 3, 4)
    summary = records.summary()
    assert (summary.kernels, summary.targets, summary.records) == (2, 1, 3)
    assert summary.statuses == {"memory": 1, "ok": 2}
    assert records.kernel(KERNEL.digest[:9]) == KERNEL
    for prefix, message in (("", "beginning"), ("%", "beginning"), ("0" * 63, "no kernel")):
        with pytest.raises(UserError, match=message):
            records.kernel(prefix)


# ------------------------------------------------------------------------------------- sharing


def test_threads_share_one_store(records):
    def write(first: int) -> None:
        for n in range(first, first + 25):
            assert records.add(sample(n + 1))
            assert best(records) is not None

    threads = [threading.Thread(target=write, args=(25 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records.history(KERNEL.digest)) == 100


def test_two_stores_of_one_file(tmp_path):
    path = tmp_path / "deep" / "records.db"
    with Records.open(path, strict=True) as one, Records.open(path, strict=True) as two:
        one.add(sample(8))
        assert two.history(KERNEL.digest) == [sample(8)]
        two.add(sample(16))
        # Pruned by another process: what was sent before must be sent again.
        one.prune(before_ns=2**62, keep_best=0)
        assert two.add(sample(32))
        assert one.history(KERNEL.digest) == [sample(32)]


def test_closed_and_absent_stores_read_empty(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        absent = Records.open(tmp_path / "no" / "records.db", create=False)
        assert not absent.is_usable
        assert best(absent) is None and absent.kernels() == [] and not absent.add(sample(8))
        assert absent.summary().records == 0
        assert not (tmp_path / "no").exists()
        store = Records.open(tmp_path / "records.db")
        store.close()
        assert not store.add(sample(8)) and list(store.iterate()) == []


def test_the_config_says_where(tmp_path):
    config = Config(cache_dir=tmp_path)
    with Records.open(config, strict=True) as records:
        records.add(sample(8))
    assert (tmp_path / "records.db").exists()
    named = Config.load({"NESTOR_CACHE": f"sqlite:///{tmp_path}/records.db"})
    with Records.open(named, create=False, strict=True) as records:
        assert records.history(KERNEL.digest) == [sample(8)]
    with Records.open(f"sqlite:///{tmp_path}/other.db") as records:
        assert records.place == f"{tmp_path}/other.db"


@pytest.mark.parametrize(
    "text", ["mysql://a:secret@b/c", "records.db", "", "sqlite://", "sqlite:///"]
)
def test_what_no_database_can_be(text):
    with pytest.raises(UserError) as caught:
        Config.load({"NESTOR_CACHE": text})
    assert "secret" not in str(caught.value)


def test_a_password_is_not_shown():
    config = Config.load({"NESTOR_CACHE": "postgresql://me:secret@localhost:1/db"})
    assert "secret" not in repr(config)
    with pytest.raises(UserError) as caught:
        Records.open(config, strict=True)
    assert "secret" not in str(caught.value)
    assert "postgresql" in str(caught.value)


# ------------------------------------------------------------------------------------- pruning


def test_prune_keeps_the_best_and_what_condemns(records):
    records.add_many([sample(n, 0.1 * n, created_ns=n) for n in range(1, 9)])
    records.add(sample(1, status="wrong", samples_ns=(), created_ns=9))
    records.add(sample(99, status="illegal", samples_ns=(), created_ns=10))
    records.add(sample(7, 0.9, created_ns=2_000))
    records.add(sample(7, status="wrong", samples_ns=(), created_ns=11))
    removed = records.prune(before_ns=1_000, keep_best=2)
    # 2 and 3 are the fastest that are not condemned; 7 was measured lately, and its fault with it.
    left = {(r.trial, r.status, r.created_ns) for r in records.history(KERNEL.digest)}
    assert left == {(2, "ok", 2), (3, "ok", 3), (7, "ok", 2_000), (7, "wrong", 11)}
    assert removed == 8
    assert best(records).trial == 2
    assert records.prune(before_ns=2**62, keep_best=0) == 4
    assert records.summary().kernels == 0 and records.summary().targets == 0


def test_records_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample(8).threads = 3  # type: ignore[misc]
    assert isinstance(sample(8), Record)
