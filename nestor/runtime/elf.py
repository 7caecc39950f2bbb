"""Load relocatable x86-64 objects into this process: no linker, no LLVM.

All objects of a call share one mapping: the text pages of every object first (read and execute),
then read-only data and the global offset table (read), then writable data. Symbols are private to
their object. The image is built and relocated in ordinary memory with every access checked, and
copied into place at the end, so a malformed object raises and never crashes.

Source: System V ABI, AMD64 supplement, section 4.4 (relocation types).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import dataclass

from nestor.errors import UserError
from nestor.runtime import elf_format as fmt
from nestor.runtime import memory
from nestor.runtime.elf_format import ElfObject, ElfSymbol, Relocation, malformed, parse_object

EXTERNAL_FUNCTIONS = ("memcpy", "memset", "memmove")
"""What object code may leave undefined; LLVM makes such calls out of plain loops."""

R_NONE, R_64, R_PC32, R_PLT32, R_GOTPCREL, R_32, R_32S, R_PC64 = 0, 1, 2, 4, 9, 10, 11, 24
R_GOTPCRELX, R_REX_GOTPCRELX, R_CODE_4_GOTPCRELX = 41, 42, 43
_GOT_KINDS = frozenset((R_GOTPCREL, R_GOTPCRELX, R_REX_GOTPCRELX, R_CODE_4_GOTPCRELX))
_KNOWN = _GOT_KINDS | {R_NONE, R_64, R_PC32, R_PLT32, R_32, R_32S, R_PC64}
_STUB_BYTES = 8


class LoadedObject:
    """Functions of one object, callable while this (or a sibling) is alive."""

    __slots__ = ("_addresses", "_mapping", "label")

    def __init__(self, label: str, addresses: dict[str, int], mapping: memory.Mapping):
        self.label = label
        self._addresses = addresses
        self._mapping = mapping

    def address(self, symbol: str) -> int:
        """Address of a global symbol.

        Raises:
            ArtifactError: the object does not define it.
        """
        try:
            return self._addresses[symbol]
        except KeyError:
            known = ", ".join(sorted(self._addresses)) or "nothing"
            raise malformed(self.label, f"no symbol '{symbol}' (it defines {known})") from None

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the global symbols, sorted."""
        return tuple(sorted(self._addresses))


def load_object(
    data: bytes, *, label: str = "object", externals: MappingType[str, int] | None = None
) -> LoadedObject:
    """Load one object; see ``load_objects``."""
    return load_objects([data], labels=[label], externals=externals)[0]


def load_objects(
    objects: Sequence[bytes],
    *,
    labels: Sequence[str] | None = None,
    externals: MappingType[str, int] | None = None,
) -> list[LoadedObject]:
    """Load relocatable objects into one mapping.

    Args:
        objects: ELF files (x86-64, relocatable, position independent).
        labels: how errors name each; numbers when None.
        externals: addresses of further undefined symbols beside ``EXTERNAL_FUNCTIONS``.

    Raises:
        ArtifactError: malformed, an unknown relocation, or an undefined symbol.
        UserError: the system forbids executable memory.
    """
    names = list(labels) if labels is not None else [f"#{i}" for i in range(len(objects))]
    if len(names) != len(objects):
        raise ValueError("one label an object")
    parsed = [parse_object(bytes(d), n) for d, n in zip(objects, names, strict=True)]
    if not parsed:
        return []
    image = _Image(parsed, dict(externals or {}))
    mapping = image.map()
    return [LoadedObject(o.label, image.global_addresses(i), mapping) for i, o in enumerate(parsed)]


@dataclass(slots=True)
class _Span:
    """One of the three parts of the image: bytes with a common protection."""

    protection: int
    size: int = 0
    start: int = 0

    def reserve(self, size: int, alignment: int) -> int:
        offset = memory.round_up(self.size, alignment)
        self.size = offset + size
        return offset


class _Image:
    """Layout, relocation and mapping of parsed objects."""

    def __init__(self, objects: Sequence[ElfObject], externals: dict[str, int]):
        self.objects = objects
        self.text = _Span(memory.READ | memory.EXECUTE)
        self.constant = _Span(memory.READ)
        self.data = _Span(memory.READ | memory.WRITE)
        self.spans = (self.text, self.constant, self.data)
        self.externals = externals
        self.placed: dict[tuple[int, int], tuple[_Span, int]] = {}
        self.common: dict[tuple[int, int], int] = {}
        self.stubs: dict[str, int] = {}
        self.got: dict[tuple[int, int] | str, int] = {}
        self.base = 0
        self._place()

    def _place(self) -> None:
        for number, obj in enumerate(self.objects):
            for section in obj.sections:
                if section.is_loaded:
                    span = self._span_of(section, obj.label)
                    place = span.reserve(section.size, max(section.alignment, 16))
                    self.placed[number, section.index] = (span, place)
            for index, symbol in enumerate(obj.symbols):
                if symbol.section == fmt.SHN_COMMON:
                    alignment = symbol.value or 1
                    if alignment & (alignment - 1) or alignment > fmt.PAGE:
                        raise malformed(obj.label, f"common symbol '{symbol.name}' is misaligned")
                    self.common[number, index] = self.data.reserve(symbol.size, alignment)
            for relocation in obj.relocations:
                self._reserve_indirection(number, obj, relocation)
        start = 0
        for span in self.spans:
            span.start = start
            start += memory.round_up(span.size, memory.PAGE)
        self.size = start
        if start > fmt.MAX_IMAGE_BYTES:
            raise malformed(self.objects[0].label, f"{start} bytes of image are too many")

    def _span_of(self, section: fmt.Section, label: str) -> _Span:
        if section.flags & fmt.SHF_EXECINSTR:
            if section.flags & fmt.SHF_WRITE or section.kind == fmt.SHT_NOBITS:
                raise malformed(label, f"section {section.name} is both writable and executable")
            return self.text
        return self.data if section.flags & fmt.SHF_WRITE else self.constant

    def _reserve_indirection(self, number: int, obj: ElfObject, relocation: Relocation) -> None:
        if relocation.kind not in _KNOWN:
            raise malformed(obj.label, f"relocation type {relocation.kind} is not supported")
        symbol = obj.symbols[relocation.symbol] if obj.symbols else None
        if symbol is None:
            if relocation.kind != R_NONE:
                raise malformed(obj.label, "a relocation without a symbol table")
            return
        external = symbol.section == fmt.SHN_UNDEF and relocation.symbol != 0
        if external:
            self._external(symbol, obj.label)
        key = symbol.name if external else (number, relocation.symbol)
        needs_stub = external and relocation.kind in (R_PC32, R_PLT32)
        if (relocation.kind in _GOT_KINDS or needs_stub) and key not in self.got:
            self.got[key] = self.constant.reserve(8, 8)
        if needs_stub and symbol.name not in self.stubs:
            self.stubs[symbol.name] = self.text.reserve(_STUB_BYTES, _STUB_BYTES)

    def _external(self, symbol: ElfSymbol, label: str) -> int:
        if symbol.name in self.externals:
            return self.externals[symbol.name]
        if symbol.name in EXTERNAL_FUNCTIONS:
            return memory.libc_address(symbol.name)
        raise malformed(label, f"undefined symbol '{symbol.name}'")

    def _symbol_address(self, number: int, index: int) -> int:
        obj = self.objects[number]
        symbol = obj.symbols[index]
        if symbol.kind in (fmt.STT_TLS, fmt.STT_GNU_IFUNC):
            raise malformed(obj.label, f"symbol '{symbol.name}' is thread-local or indirect")
        if symbol.section == fmt.SHN_ABS or index == 0:
            return symbol.value
        if symbol.section == fmt.SHN_UNDEF:
            return self._external(symbol, obj.label)
        if symbol.section == fmt.SHN_COMMON:
            return self.base + self.data.start + self.common[number, index]
        if (number, symbol.section) not in self.placed:
            raise malformed(obj.label, f"symbol '{symbol.name}' lies in a section without memory")
        span, offset = self.placed[number, symbol.section]
        if symbol.value > obj.sections[symbol.section].size:
            raise malformed(obj.label, f"symbol '{symbol.name}' lies outside its section")
        return self.base + span.start + offset + symbol.value

    def global_addresses(self, number: int) -> dict[str, int]:
        """Addresses of the defined global symbols of one object, by name."""
        return {
            s.name: self._symbol_address(number, i)
            for i, s in enumerate(self.objects[number].symbols)
            if i and s.binding != fmt.STB_LOCAL and s.section != fmt.SHN_UNDEF
            and s.kind not in (fmt.STT_SECTION, fmt.STT_FILE)
        }  # fmt: skip

    def map(self) -> memory.Mapping:
        """Build, relocate, copy into a fresh mapping and protect it."""
        wants_low = any(r.kind in (R_32, R_32S) for o in self.objects for r in o.relocations)
        mapping = memory.Mapping(self.size, low=wants_low, huge=False)
        self.base = mapping.address
        image = bytearray(self.size)
        image[: self.text.size] = b"\xcc" * self.text.size
        for (number, index), (span, offset) in self.placed.items():
            section = self.objects[number].sections[index]
            place = span.start + offset
            if section.kind != fmt.SHT_NOBITS:
                image[place : place + section.size] = section.data
        self._fill_indirections(image)
        for number, obj in enumerate(self.objects):
            for relocation in obj.relocations:
                self._relocate(image, number, obj, relocation)
        mapping.write(0, image)
        for span in self.spans:
            size = memory.round_up(span.size, memory.PAGE)
            try:
                mapping.protect(span.start, size, span.protection)
            except OSError as error:
                raise UserError(
                    f"this system refuses executable memory ({error.strerror}); allow it for this "
                    "process (SELinux: execmem) to run compiled models"
                ) from error
        return mapping

    def _fill_indirections(self, image: bytearray) -> None:
        for key, offset in self.got.items():
            if isinstance(key, str):
                address = self.externals.get(key) or memory.libc_address(key)
            else:
                address = self._symbol_address(*key)
            struct.pack_into("<Q", image, self.constant.start + offset, address)
        for name, offset in self.stubs.items():
            slot = self.constant.start + self.got[name]
            place = self.text.start + offset
            # jmp *[rip + displacement]
            struct.pack_into("<BBi", image, place, 0xFF, 0x25, slot - (place + 6))

    def _relocate(
        self, image: bytearray, number: int, obj: ElfObject, relocation: Relocation
    ) -> None:
        kind = relocation.kind
        if kind == R_NONE:
            return
        span, offset = self.placed[number, relocation.target]
        place = span.start + offset + relocation.offset
        width = 8 if kind in (R_64, R_PC64) else 4
        if relocation.offset + width > obj.sections[relocation.target].size:
            raise malformed(obj.label, "a relocation reaches over the end of its section")
        symbol = obj.symbols[relocation.symbol]
        external = symbol.section == fmt.SHN_UNDEF and relocation.symbol != 0
        if kind in _GOT_KINDS:
            key = symbol.name if external else (number, relocation.symbol)
            value = self.base + self.constant.start + self.got[key]
        elif external and kind in (R_PC32, R_PLT32):
            value = self.base + self.text.start + self.stubs[symbol.name]
        else:
            value = self._symbol_address(number, relocation.symbol)
        value += relocation.addend
        if kind not in (R_64, R_32, R_32S):
            value -= self.base + place
        if kind == R_64:
            value &= (1 << 64) - 1
        try:
            struct.pack_into(_FORMATS.get(kind, "<i"), image, place, value)
        except struct.error:
            raise malformed(
                obj.label, f"relocation type {kind} of '{symbol.name}' does not fit its field"
            ) from None


_FORMATS = {R_64: "<Q", R_PC64: "<q", R_32: "<I"}
