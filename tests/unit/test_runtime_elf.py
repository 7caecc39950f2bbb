"""The ELF loader: relocations of every kind that LLVM emits, sharing, damage."""

from __future__ import annotations

import contextlib
import ctypes
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from nestor.errors import ArtifactError
from nestor.runtime import elf, elf_format
from nestor.runtime.elf import load_object, load_objects
from tests.helpers.native import compile_text

RICH = """
@table = internal constant [4 x i32] [i32 11, i32 22, i32 33, i32 44]
@pointers = internal constant [2 x ptr] [ptr @one, ptr @two]
@shared = global i32 7
@hidden_zero = internal global [64 x i64] zeroinitializer
@common_one = common global i32 0, align 4
declare ptr @memcpy(ptr, ptr, i64)
declare ptr @memset(ptr, i32, i64)
declare ptr @memmove(ptr, ptr, i64)
define i32 @one() { ret i32 1 }
define i32 @two() { ret i32 2 }
define i32 @look(i64 %i) {
  %p = getelementptr [4 x i32], ptr @table, i64 0, i64 %i
  %v = load i32, ptr %p
  ret i32 %v
}
define i32 @indirect(i64 %i) {
  %p = getelementptr [2 x ptr], ptr @pointers, i64 0, i64 %i
  %f = load ptr, ptr %p
  %v = call i32 %f()
  ret i32 %v
}
define i32 @bump() {
  %v = load i32, ptr @shared
  %w = add i32 %v, 1
  store i32 %w, ptr @shared
  ret i32 %w
}
define i64 @count() {
  %v = load i64, ptr getelementptr ([64 x i64], ptr @hidden_zero, i64 0, i64 63)
  %w = add i64 %v, 1
  store i64 %w, ptr getelementptr ([64 x i64], ptr @hidden_zero, i64 0, i64 63)
  ret i64 %w
}
define i32 @set_common(i32 %v) {
  %old = load i32, ptr @common_one
  store i32 %v, ptr @common_one
  ret i32 %old
}
define ptr @copy(ptr %to, ptr %from, i64 %n) {
  %a = call ptr @memcpy(ptr %to, ptr %from, i64 %n)
  ret ptr %a
}
define ptr @fill(ptr %to, i32 %v, i64 %n) {
  %a = call ptr @memset(ptr %to, i32 %v, i64 %n)
  ret ptr %a
}
define ptr @mover() { ret ptr @memmove }
define double @pick(i32 %k) {
  switch i32 %k, label %other [ i32 0, label %a
    i32 1, label %b
    i32 2, label %c
    i32 3, label %d
    i32 4, label %e ]
a: ret double 0.125
b: ret double 3.5
c: ret double -7.25
d: ret double 1.0e10
e: ret double 2.0e-3
other: ret double 0.0
}
define <4 x float> @vector() {
  ret <4 x float> <float 1.0, float 2.0, float 3.0, float 4.0>
}
"""


def function(loaded: elf.LoadedObject, name: str, result, *arguments):
    return ctypes.CFUNCTYPE(result, *arguments)(loaded.address(name))


def test_constants_data_bss_jump_tables_and_pointers():
    rich = load_object(compile_text(RICH))
    assert [function(rich, "look", ctypes.c_int, ctypes.c_int64)(i) for i in range(4)] == [
        11,
        22,
        33,
        44,
    ]
    assert [function(rich, "indirect", ctypes.c_int, ctypes.c_int64)(i) for i in (0, 1)] == [1, 2]
    bump = function(rich, "bump", ctypes.c_int)
    assert [bump(), bump()] == [8, 9]
    count = function(rich, "count", ctypes.c_int64)
    assert [count(), count()] == [1, 2]
    common = function(rich, "set_common", ctypes.c_int, ctypes.c_int)
    assert [common(5), common(6)] == [0, 5]
    pick = function(rich, "pick", ctypes.c_double, ctypes.c_int)
    assert [pick(i) for i in range(6)] == [0.125, 3.5, -7.25, 1.0e10, 2.0e-3, 0.0]
    assert "pick" in rich.symbols
    assert "table" not in rich.symbols


def test_memcpy_and_friends_are_those_of_the_c_library():
    rich = load_object(compile_text(RICH))
    source, target = np.arange(1000, dtype=np.uint8), np.zeros(1000, np.uint8)
    pointer = ctypes.c_void_p
    copy = function(rich, "copy", pointer, pointer, pointer, ctypes.c_size_t)
    copy(target.ctypes.data, source.ctypes.data, 1000)
    assert (source == target).all()
    fill = function(rich, "fill", pointer, pointer, ctypes.c_int, ctypes.c_size_t)
    fill(target.ctypes.data, 7, 1000)
    assert (target == 7).all()
    assert function(rich, "mover", pointer)() == ctypes.cast(
        ctypes.CDLL(None).memmove, pointer
    ).value  # fmt: skip


def test_relocations_of_interest_occur():
    kinds = {r.kind for r in elf_format.parse_object(compile_text(RICH)).relocations}
    assert {elf.R_64, elf.R_PC32, elf.R_PLT32} <= kinds
    assert kinds & {elf.R_GOTPCREL, elf.R_GOTPCRELX, elf.R_REX_GOTPCRELX}


def test_absolute_32_bit_code_is_placed_low():
    data = compile_text(RICH, "default")
    kinds = {r.kind for r in elf_format.parse_object(data).relocations}
    assert kinds & {elf.R_32, elf.R_32S}, "the static model no longer emits what this test is for"
    static = load_object(data)
    assert static.address("look") < 1 << 31
    assert function(static, "look", ctypes.c_int, ctypes.c_int64)(2) == 33
    assert function(static, "pick", ctypes.c_double, ctypes.c_int)(2) == -7.25


def test_several_objects_share_a_mapping_and_keep_their_own_symbols():
    texts = [f"define i32 @kernel() {{ ret i32 {n} }}" for n in range(20)]
    before = _mappings()
    loaded = load_objects([compile_text(t) for t in texts])
    assert _mappings() - before <= 3
    calls = [function(one, "kernel", ctypes.c_int)() for one in loaded]
    assert calls == list(range(20))
    last = loaded[-1]
    del loaded  # the mapping lives as long as any of them
    assert function(last, "kernel", ctypes.c_int)() == 19


def test_memory_is_given_back():
    data = compile_text(RICH)
    load_object(data)
    before = _mappings()
    for _ in range(50):
        load_object(data)
    assert _mappings() <= before + 3


def _mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_text_is_not_writable_and_data_not_executable():
    rich = load_object(compile_text(RICH))
    where = {"pick": "r-xp", "shared": "rw-p"}
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(v, 16) for v in line.split()[0].split("-"))
        for name in list(where):
            if low <= rich.address(name) < high:
                assert line.split()[1] == where.pop(name)
    assert not where


def test_unknown_symbol_is_named():
    text = "declare i32 @getpid()\ndefine i32 @kernel() {\n %r = call i32 @getpid()\n ret i32 %r\n}"
    with pytest.raises(ArtifactError, match="undefined symbol 'getpid'"):
        load_object(compile_text(text), label="k1")
    import os

    address = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    loaded = load_object(compile_text(text), externals={"getpid": address})
    assert function(loaded, "kernel", ctypes.c_int)() == os.getpid()
    with pytest.raises(ArtifactError, match=r"no symbol 'kern' \(it defines kernel\)"):
        loaded.address("kern")


def test_unknown_relocation_is_named():
    data = bytearray(compile_text(RICH))
    parsed = elf_format.parse_object(bytes(data))
    assert parsed.relocations
    count, names = struct.unpack_from("<HH", data, 60)
    table = struct.unpack_from("<Q", data, 40)[0]
    del names
    for i in range(count):
        kind, offset, info = (
            struct.unpack_from("<I", data, table + 64 * i + 4)[0],
            struct.unpack_from("<Q", data, table + 64 * i + 24)[0],
            struct.unpack_from("<I", data, table + 64 * i + 44)[0],
        )
        if kind == elf_format.SHT_RELA and parsed.sections[info].is_loaded:
            struct.pack_into("<I", data, offset + 8, 77)
            break
    with pytest.raises(ArtifactError, match="relocation type 77 is not supported"):
        load_object(bytes(data))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF", b"not an object at all" * 20, b"\x7fELF\x01\x01" + b"\0" * 100],
)
def test_other_files_are_refused(data):
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_object(data)


def test_executables_of_the_system_are_refused():
    import sys

    with pytest.raises(ArtifactError):
        load_object(Path(sys.executable).resolve().read_bytes())


def test_every_truncation_is_refused_or_harmless():
    data = compile_text(RICH)
    for size in range(0, len(data), 7):
        with pytest.raises(ArtifactError):
            load_object(data[:size])


def test_random_damage_never_crashes():
    data = compile_text(RICH)
    random_source = random.Random(7)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(random_source.choice((1, 1, 2, 8))):
            # Headers and tables matter most; they stand at both ends.
            damaged[random_source.randrange(len(data))] = random_source.randrange(256)
        try:
            load_object(bytes(damaged))
        except ArtifactError:
            refused += 1
    assert refused > 100


def test_damaged_headers_never_crash():
    data = compile_text(RICH)
    table, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    random_source = random.Random(11)
    for _ in range(1500):
        damaged = bytearray(data)
        where = random_source.choice(
            [random_source.randrange(64), table + random_source.randrange(64 * count)]
        )
        width = random_source.choice([1, 2, 4, 8])
        value = random_source.choice([0, 1, 0xFF, 0xFFFF, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1])
        where = min(where, len(data) - width)
        damaged[where : where + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        with contextlib.suppress(ArtifactError):
            load_object(bytes(damaged))
