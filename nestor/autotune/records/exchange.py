"""Records as a file: compressed lines of JSON, data only. And from one database into another.

The first line says what the file is; each further line is a kernel, a target, or a record that
names its kernel and target by their digests, which stand above it; the last line counts the
records, so that a cut file is told from a whole one.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.autotune.records.checking import (
    MAX_KERNEL_CHARS,
    MAX_SAMPLES_CHARS,
    MAX_SCHEDULE_CHARS,
    BadRecord,
    canonical_json,
    check_int,
    check_keys,
    parse_json,
)
from nestor.autotune.records.record import KernelKey, Record, TargetKey
from nestor.errors import OutputError, UserError

if TYPE_CHECKING:
    from nestor.autotune.records.store import Records

FORMAT = "nestor-records"
FORMAT_VERSION = 1

_MAX_LINE = 2 * max(MAX_KERNEL_CHARS, MAX_SCHEDULE_CHARS + MAX_SAMPLES_CHARS)
"""JSON writes some characters as several."""

_KEYS_KEPT = 100_000
"""Kernels and targets of a file that are held in memory; a text may take 4 MiB, but those of real
models take about 1 KiB."""


def export_records(records: Records, path: Path) -> int:
    """Write every sound record; how many. The file appears whole or not at all.

    Raises: ``OutputError``.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # No name and no time in the file: equal records make equal bytes.
        with part.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            count = _write_lines(records, file)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return count


def _write_lines(records: Records, file: gzip.GzipFile) -> int:
    def write(kind: str, value: Any) -> None:
        file.write(canonical_json({kind: value}).encode() + b"\n")

    write("format", {"name": FORMAT, "version": FORMAT_VERSION})
    written: set[str] = set()
    count = 0
    for record in records.iterate():
        if record.kernel.digest not in written:
            written.add(record.kernel.digest)
            write("kernel", record.kernel.text)
        if record.target.digest not in written:
            written.add(record.target.digest)
            write("target", record.target.text)
        write("record", record.to_json())
        count += 1
    write("end", {"records": count})
    return count


def import_records(records: Records, path: Path) -> tuple[int, int, int]:
    """Add the records of an exported file; (new, known before, refused).

    Raises: ``UserError`` if it is no such file or is cut; what came before the cut was added.
    """
    reader = _Reader(path)
    seen = 0

    def counted() -> Iterator[Record]:
        nonlocal seen
        for record in reader.records():
            seen += 1
            yield record

    try:
        added = records.add_many(counted())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{str(path)!r} is no file of records, or is cut: {error}\n  {seen} records were read"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    return added, seen - added, reader.refused


def read_records(path: Path) -> Iterator[Record]:
    """The sound records of an exported file, without a database.

    Raises: ``UserError`` if it is no such file or is cut.
    """
    try:
        yield from _Reader(path).records()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{str(path)!r} is no file of records, or is cut: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None


class _Reader:
    """Records of a file, one by one; every line may be hostile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused = 0
        self.kernels: dict[str, KernelKey] = {}
        self.targets: dict[str, TargetKey] = {}

    def records(self) -> Iterator[Record]:
        """The sound records; others are counted in ``refused``."""
        with gzip.open(self.path, "rb") as file:
            self._check_head(file.readline(1000))
            met = 0
            while True:
                line = file.readline(_MAX_LINE)
                if not line.endswith(b"\n"):
                    if len(line) == _MAX_LINE:
                        raise UserError(f"{str(self.path)!r}: a line of more than {_MAX_LINE}")
                    raise EOFError("it ends too early")
                try:
                    kind, value = self._line(line)
                    if kind == "end":
                        self._check_end(value, met)
                        if file.read(1):  # also makes gzip compare its checksum
                            raise UserError(f"{str(self.path)!r}: something follows the end")
                        return
                    met += kind == "record"
                    record = self._take(kind, value)
                except BadRecord:
                    self.refused += 1
                    continue
                if record is not None:
                    yield record

    def _check_head(self, line: bytes) -> None:
        try:
            kind, value = self._line(line)
            head = check_keys("head", value, {"name", "version"}) if kind == "format" else {}
            version = check_int("version", head.get("version"), 1)
            if head["name"] != FORMAT:
                raise BadRecord("another format")
        except BadRecord:
            raise UserError(f"{str(self.path)!r} is no file of records") from None
        if version > FORMAT_VERSION:
            raise UserError(
                f"{str(self.path)!r} was written by a newer Nestor (format {version}; this one "
                f"knows {FORMAT_VERSION})\n  fix: upgrade Nestor"
            )

    def _check_end(self, value: Any, met: int) -> None:
        if check_keys("end", value, {"records"})["records"] != met:
            raise UserError(f"{str(self.path)!r}: lines are missing or were added; {met} records")

    @staticmethod
    def _line(line: bytes) -> tuple[str, Any]:
        data = parse_json("line", line.decode("utf-8", "replace").rstrip("\n"), _MAX_LINE)
        if not isinstance(data, dict) or len(data) != 1:
            raise BadRecord("a line is not one entry")
        return next(iter(data.items()))

    def _take(self, kind: str, value: Any) -> Record | None:
        if kind == "kernel":
            if len(self.kernels) < _KEYS_KEPT:
                kernel = KernelKey.parsed(value)
                self.kernels[kernel.digest] = kernel
            return None
        if kind == "target":
            if len(self.targets) < _KEYS_KEPT:
                target = TargetKey.parsed(value)
                self.targets[target.digest] = target
            return None
        if kind != "record" or not isinstance(value, dict):
            raise BadRecord("an unknown entry")
        known = self.kernels.get(str(value.get("kernel")))
        place = self.targets.get(str(value.get("target")))
        if known is None or place is None:
            raise BadRecord("its kernel or target was not given")
        return Record.from_json(value, known, place)


def merge_records(records: Records, where: str | Path) -> tuple[int, int, int]:
    """Add the records of another database; (new, known before, refused).

    Raises: ``UserError`` if there is none at ``where`` or it cannot be used.
    """
    from nestor.autotune.records.store import Records as Store

    with Store.open(where, create=False, strict=True) as other:
        if not other.is_usable:
            raise UserError(f"no records at {other.place}")
        seen, proved = 0, dict[str, bool]()

        def sound() -> Iterator[Record]:
            nonlocal seen
            for record in other.iterate():
                # Rows were compared with their digests; that a kernel's text is one is left.
                digest = record.kernel.digest
                if digest not in proved:
                    proved[digest] = _is_kernel(record.kernel)
                if proved[digest]:
                    seen += 1
                    yield record
                else:
                    other.skip(1)

        added = records.add_many(sound())
        return added, seen - added, other.skipped


def _is_kernel(kernel: KernelKey) -> bool:
    try:
        return KernelKey.parsed(kernel.text) == kernel
    except BadRecord:
        return False
