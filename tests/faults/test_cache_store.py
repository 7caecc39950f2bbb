"""The object cache: damage, concurrency, kills, limits, folders that cannot be used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from nestor import cache as cache_module
from nestor.cache import CacheWarning, ObjectCache, RecordStore, default_cache_dir

ROOT = Path(__file__).resolve().parents[2]
KEY = "ab" * 32
OTHER = "cd" * 32


def test_round_trip_and_miss(tmp_path):
    cache = ObjectCache(tmp_path)
    assert cache.get(KEY) is None
    cache.put(KEY, b"code")
    cache.put(OTHER, b"")
    assert ObjectCache(tmp_path).get(KEY) == b"code"
    assert cache.get(OTHER) == b""
    assert (cache.folder.stat().st_mode & 0o777) == 0o700


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "a/b" * 10, "short"])
def test_only_digests_are_keys(tmp_path, bad):
    with pytest.raises(ValueError, match="not a cache key"):
        ObjectCache(tmp_path).get(bad)


@pytest.mark.parametrize("damage", ["cut", "flip", "longer", "empty", "header"])
def test_damaged_entry_is_set_aside_with_a_warning(tmp_path, damage):
    cache = ObjectCache(tmp_path)
    cache.put(KEY, b"some object code")
    path = cache.path_of(KEY)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
    new = {"cut": data[:-1], "flip": data, "longer": data + b"x", "empty": b"", "header": data[:20]}
    path.write_bytes(bytes(new[damage]))
    with pytest.warns(CacheWarning, match="is damaged: set aside"):
        assert cache.get(KEY) is None
    assert (cache.folder / "damaged" / path.name).exists()
    cache.put(KEY, b"again")
    assert cache.get(KEY) == b"again"


def test_least_recently_used_go_first(tmp_path):
    cache = ObjectCache(tmp_path)
    keys = [f"{i:02x}" * 8 for i in range(10)]
    for age, key in enumerate(keys):
        cache.put(key, b"x" * 1000)
        then = time.time() - 1000 * (20 - age)
        os.utime(cache.path_of(key), (then, then))
    assert cache.get(keys[0]) is not None  # more than an hour old: its time of use is renewed
    assert cache.prune(10_000) > 0
    assert cache.size_bytes() <= 8_000
    assert cache.get(keys[0]) is not None
    assert cache.get(keys[1]) is None
    assert cache.get(keys[9]) is not None


def test_size_stays_bounded_without_asking(tmp_path):
    cache = ObjectCache(tmp_path, max_bytes=20_000)
    for i in range(200):
        cache.put(f"{i:08x}", b"x" * 1000)
    assert cache.size_bytes() <= 25_000


def test_file_left_by_a_killed_writer_is_cleaned(tmp_path):
    cache = ObjectCache(tmp_path)
    cache.put(KEY, b"x")
    left = cache.path_of(KEY).parent / ".tmpabc"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    cache.prune()
    assert not left.exists()
    assert cache.get(KEY) == b"x"


def test_folder_of_everybody_is_not_trusted(tmp_path):
    ObjectCache(tmp_path).put(KEY, b"evil")
    (tmp_path / "objects").chmod(0o777)
    with pytest.warns(CacheWarning, match="every user"):
        assert ObjectCache(tmp_path).get(KEY) is None


def test_foreign_folder_is_not_trusted(tmp_path, monkeypatch):
    ObjectCache(tmp_path).put(KEY, b"evil")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.warns(CacheWarning, match="belongs to another user"):
        assert ObjectCache(tmp_path).get(KEY) is None


def test_folder_that_cannot_be_made_warns_once(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ObjectCache(tmp_path / "file" / "deeper")
    with pytest.warns(CacheWarning, match="going on without a cache"):
        cache.put(KEY, b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(KEY, b"x")
        assert cache.get(KEY) is None


def test_full_disk_leaves_no_entry(tmp_path, monkeypatch):
    cache = ObjectCache(tmp_path)
    cache.put(OTHER, b"before")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(CacheWarning, match="No space left"):
        cache.put(KEY, b"x" * 100)
    assert not cache.path_of(KEY).exists()
    assert not list(cache.folder.glob("??/.tmp*"))


def test_records(tmp_path):
    store = RecordStore(tmp_path)
    store.put(KEY, {"verdict": "legal", "seconds": 0.5})
    assert store.get(KEY) == {"verdict": "legal", "seconds": 0.5}
    assert store.get(OTHER) is None
    cache_module.FileStore(tmp_path / "records", ".rec").put(OTHER, b"not json {")
    with pytest.warns(CacheWarning, match="damaged"):
        assert store.get(OTHER) is None


def test_cache_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NESTOR_CACHE_DIR", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("NESTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "nestor"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == Path.home() / ".cache" / "nestor"


WRITER = """
import sys
from pathlib import Path
from nestor.cache import ObjectCache
cache = ObjectCache(Path(sys.argv[1]), max_bytes=40_000)
n = 0
while True:
    key = f"{n % 50:08x}"
    data = cache.get(key)
    assert data is None or data == key.encode() * 100, "wrong contents"
    cache.put(key, key.encode() * 100)
    n += 1
    if n == 100:
        print("busy", flush=True)
"""


def test_processes_write_together_and_are_killed_at_any_instant(tmp_path):
    command = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path)]
    for _ in range(3):
        writers = [
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(3)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"busy\n", writer.communicate()[1]
        for writer in writers:
            assert writer.poll() is None, writer.communicate()[1]
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
    cache = ObjectCache(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [cache.get(f"{n:08x}") for n in range(50)]
    assert any(found)
    assert all(f is None or f == f"{n:08x}".encode() * 100 for n, f in enumerate(found))


def test_threads_share_one_store(tmp_path):
    cache = ObjectCache(tmp_path)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(50):
                key = f"{(i * seed) % 17:08x}"
                cache.put(key, key.encode())
                assert cache.get(key) == key.encode()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in (1, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
