"""What an ELF object needs at run time: its loader, libraries and search paths.

Reads the ELF header, program headers and the dynamic section only (System V ABI, gabi, chapters
4 and 5). Objects may be damaged or hostile: every offset is checked, every loop is bounded.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

__all__ = ["ElfInfo", "read_elf"]

_MAGIC = b"\x7fELF"
_CLASS_64 = 2
_LITTLE_ENDIAN = 1
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 14, 15, 29
_PROGRAM_HEADERS_MAX = 128
_DYNAMIC_ENTRIES_MAX = 4096
_STRING_MAX = 4096


@dataclass(frozen=True, slots=True)
class ElfInfo:
    """What the loader reads. `machine` is e_machine; paths still hold $ORIGIN and the like."""

    bits: int
    machine: int
    interpreter: str | None
    soname: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def read_elf(path: str) -> ElfInfo | None:
    """Read an object; None for what is not ELF or is damaged. Raises OSError of opening."""
    with open(path, "rb") as file:
        if file.read(4) != _MAGIC:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data)
            except (struct.error, IndexError, ValueError, OverflowError):
                return None


def _parse(data: mmap.mmap) -> ElfInfo:
    is_64 = data[4] == _CLASS_64
    order = "<" if data[5] == _LITTLE_ENDIAN else ">"
    machine = struct.unpack_from(f"{order}H", data, 18)[0]
    segments = _segments(data, order, is_64=is_64)
    interpreter = None
    tags: list[tuple[int, int]] = []
    for segment in segments:
        if segment.kind == _PT_INTERP:
            interpreter = _string(data, segment.offset)
        elif segment.kind == _PT_DYNAMIC:
            tags = _dynamic(data, order, segment, is_64=is_64)
    strings_address = next((value for tag, value in tags if tag == _DT_STRTAB), None)
    base = None if strings_address is None else _file_offset(segments, strings_address)

    def texts(wanted: int) -> tuple[str, ...]:
        if base is None:
            return ()
        return tuple(_string(data, base + value) for tag, value in tags if tag == wanted)

    return ElfInfo(
        bits=64 if is_64 else 32,
        machine=machine,
        interpreter=interpreter,
        soname=next(iter(texts(_DT_SONAME)), None),
        needed=texts(_DT_NEEDED),
        rpath=_split(texts(_DT_RPATH)),
        runpath=_split(texts(_DT_RUNPATH)),
    )


def _segments(data: mmap.mmap, order: str, *, is_64: bool) -> list[_Segment]:
    if is_64:
        table = struct.unpack_from(f"{order}Q", data, 32)[0]
        entry_size, count = struct.unpack_from(f"{order}HH", data, 54)
    else:
        table = struct.unpack_from(f"{order}I", data, 28)[0]
        entry_size, count = struct.unpack_from(f"{order}HH", data, 42)
    segments = []
    for index in range(min(count, _PROGRAM_HEADERS_MAX)):
        at = table + index * entry_size
        if is_64:
            kind, _, offset, address, _, size = struct.unpack_from(f"{order}IIQQQQ", data, at)
        else:
            kind, offset, address, _, size = struct.unpack_from(f"{order}IIIII", data, at)
        segments.append(_Segment(kind, offset, address, size))
    return segments


def _dynamic(
    data: mmap.mmap, order: str, segment: _Segment, *, is_64: bool
) -> list[tuple[int, int]]:
    layout, step = (f"{order}qQ", 16) if is_64 else (f"{order}iI", 8)
    tags = []
    for index in range(min(segment.size // step, _DYNAMIC_ENTRIES_MAX)):
        tag, value = struct.unpack_from(layout, data, segment.offset + index * step)
        if tag == _DT_NULL:
            break
        tags.append((tag, value))
    return tags


def _file_offset(segments: list[_Segment], address: int) -> int | None:
    for segment in segments:
        if segment.kind == _PT_LOAD and 0 <= address - segment.address < segment.size:
            return segment.offset + address - segment.address
    return None


def _string(data: mmap.mmap, offset: int) -> str:
    if not 0 <= offset < len(data):
        raise ValueError("string lies outside the file")
    end = data.find(b"\0", offset, offset + _STRING_MAX)
    if end < 0:
        raise ValueError("string has no end")
    return data[offset:end].decode("utf-8", "surrogateescape")


def _split(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for value in values for part in value.split(":") if part)
