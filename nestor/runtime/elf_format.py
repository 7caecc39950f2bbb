"""Parse relocatable ELF64 x86-64 objects; every offset is checked, nothing is mapped here.

Source: System V ABI, AMD64 supplement, chapter 4 (object files).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from nestor.errors import ArtifactError

SHT_PROGBITS, SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 1, 2, 4, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_TLS, SHF_COMPRESSED = 0x1, 0x2, 0x4, 0x400, 0x800
SHN_UNDEF, SHN_ABS, SHN_COMMON, SHN_XINDEX = 0, 0xFFF1, 0xFFF2, 0xFFFF
STB_LOCAL = 0
STT_SECTION, STT_FILE, STT_TLS, STT_GNU_IFUNC = 3, 4, 6, 10

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")

PAGE = 4096
MAX_IMAGE_BYTES = 1 << 30
"""More than any object of ours by orders of magnitude: a larger claim is a malformed header."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section header, and its contents when it has any."""

    index: int
    name: str
    kind: int
    flags: int
    size: int
    link: int
    info: int
    alignment: int
    data: bytes

    @property
    def is_loaded(self) -> bool:
        """True when the section takes memory in the running image."""
        # Unwind tables serve only exceptions, which kernels never raise.
        return bool(self.flags & SHF_ALLOC) and self.name != ".eh_frame" and self.size > 0


@dataclass(frozen=True, slots=True)
class ElfSymbol:
    """One entry of the symbol table; ``section`` is an index or an ``SHN_*`` constant."""

    name: str
    binding: int
    kind: int
    section: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Relocation:
    """``offset`` lies in section ``target``; ``symbol`` indexes the object's symbols."""

    target: int
    offset: int
    kind: int
    symbol: int
    addend: int


@dataclass(frozen=True, slots=True)
class ElfObject:
    """A parsed relocatable object."""

    label: str
    sections: tuple[Section, ...]
    symbols: tuple[ElfSymbol, ...]
    relocations: tuple[Relocation, ...]


def malformed(label: str, what: str) -> ArtifactError:
    """The error for an object that cannot be loaded."""
    return ArtifactError(
        f"object code '{label}' cannot be loaded: {what}; "
        "compile the model again (a cache entry or an artifact may be damaged)"
    )


def parse_object(data: bytes, label: str = "object") -> ElfObject:
    """Parse one relocatable object.

    Args:
        data: the file's bytes.
        label: how errors name it.

    Raises:
        ArtifactError: not such an object, truncated, or with a structure that makes no sense.
    """
    sections = _parse_sections(data, label)
    tables = [s for s in sections if s.kind == SHT_SYMTAB]
    if len(tables) > 1:
        raise malformed(label, "it has more than one symbol table")
    symbols = _parse_symbols(tables[0], sections, label) if tables else ()
    relocations: list[Relocation] = []
    for section in sections:
        if section.kind in (SHT_RELA, SHT_REL) and 0 < section.info < len(sections):
            if not sections[section.info].is_loaded:
                continue
            if section.kind == SHT_REL:
                raise malformed(label, f"section {section.name} holds relocations without addends")
            relocations.extend(_parse_relocations(section, sections, len(symbols), label))
    return ElfObject(label, sections, symbols, tuple(relocations))


def _parse_sections(data: bytes, label: str) -> tuple[Section, ...]:
    if len(data) < _HEADER.size:
        raise malformed(label, f"{len(data)} bytes are too few for an ELF header")
    (ident, kind, machine, _, _, _, offset, _, _, _, _, entry, count, names) = _HEADER.unpack_from(
        data
    )
    if ident[:4] != b"\x7fELF" or ident[4] != 2 or ident[5] != 1:
        raise malformed(label, "it is not a little-endian ELF64 file")
    if kind != 1 or machine != 62:
        raise malformed(label, "it is not a relocatable x86-64 object")
    if count == 0 or entry != _SECTION.size or offset + count * entry > len(data):
        raise malformed(label, "its section table lies outside the file (truncated?)")
    raw = [_SECTION.unpack_from(data, offset + i * entry) for i in range(count)]
    if names >= count:
        raise malformed(label, "its table of section names does not exist")
    strings = _contents(data, raw[names], label)
    sections = []
    for i, (name, stype, flags, _, _, size, link, info, align, _) in enumerate(raw):
        if align & (align - 1) or (flags & SHF_ALLOC and align > PAGE):
            raise malformed(label, f"section {i} asks for an alignment of {align}")
        if flags & SHF_ALLOC and flags & (SHF_TLS | SHF_COMPRESSED):
            raise malformed(label, f"section {i} is thread-local or compressed")
        if size > MAX_IMAGE_BYTES:
            raise malformed(label, f"section {i} claims {size} bytes")
        needed = i > 0 and (flags & SHF_ALLOC or stype in (SHT_SYMTAB, SHT_RELA) or stype == 3)
        body = _contents(data, raw[i], label) if needed else b""
        sections.append(
            Section(
                i, _text(strings, name, label), stype, flags, size, link, info, max(1, align), body
            )
        )
    return tuple(sections)


def _contents(data: bytes, raw: tuple[int, ...], label: str) -> bytes:
    stype, offset, size = raw[1], raw[4], raw[5]
    if stype == SHT_NOBITS:
        return b""
    if offset + size > len(data):
        raise malformed(label, "a section lies outside the file (truncated?)")
    return bytes(data[offset : offset + size])


def _text(strings: bytes, offset: int, label: str) -> str:
    end = strings.find(b"\0", offset)
    if offset > len(strings) or (end < 0 and offset < len(strings)):
        raise malformed(label, "a name lies outside its string table")
    return strings[offset:end].decode("utf-8", "replace") if end >= 0 else ""


def _parse_symbols(
    table: Section, sections: tuple[Section, ...], label: str
) -> tuple[ElfSymbol, ...]:
    if not table.link < len(sections) or len(table.data) % _SYMBOL.size:
        raise malformed(label, "its symbol table is damaged")
    strings = sections[table.link].data
    symbols = []
    for name, info, _, shndx, value, size in _SYMBOL.iter_unpack(table.data):
        if shndx == SHN_XINDEX or (shndx < 0xFF00 and shndx >= len(sections)):
            raise malformed(label, f"a symbol lies in section {shndx}, which does not exist")
        symbols.append(
            ElfSymbol(_text(strings, name, label), info >> 4, info & 15, shndx, value, size)
        )
    return tuple(symbols)


def _parse_relocations(
    section: Section, sections: tuple[Section, ...], symbols: int, label: str
) -> list[Relocation]:
    target = section.info
    if len(section.data) % _RELA.size:
        raise malformed(label, f"relocation section {section.name} is damaged")
    limit = sections[target].size
    found = []
    for offset, info, addend in _RELA.iter_unpack(section.data):
        if offset >= limit or (info >> 32) >= max(1, symbols):
            raise malformed(label, f"a relocation of {sections[target].name} points outside")
        found.append(Relocation(target, offset, info & 0xFFFFFFFF, info >> 32, addend))
    return found
