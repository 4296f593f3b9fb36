#!/usr/bin/env python3
"""The smallest ELF files that ldconfig and modinfo read: stand-ins for NVIDIA's library and kernel module.

elf.py library SONAME FILE
elf.py module VERSION FILE
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

SHARED, RELOCATABLE = 3, 1
LOAD, DYNAMIC = 1, 2
STRTAB, STRSZ, SONAME, END = 5, 10, 14, 0


def header(kind: int, segments: int = 0, sections_at: int = 0, sections: int = 0) -> bytes:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    x86_64, names = 62, max(sections - 1, 0)
    fields = (
        kind,
        x86_64,
        1,
        0,
        64 if segments else 0,
        sections_at,
        0,
        64,
        56,
        segments,
        64,
        sections,
        names,
    )
    return ident + struct.pack("<HHIQQQIHHHHHH", *fields)


def library(soname: str) -> bytes:
    names = b"\0" + soname.encode() + b"\0"
    dynamic_at = 64 + 2 * 56
    names_at = dynamic_at + 4 * 16
    size = names_at + len(names)
    segments = b"".join(
        struct.pack("<IIQQQQQQ", kind, 4, at, at, at, length, length, 8)
        for kind, at, length in ((LOAD, 0, size), (DYNAMIC, dynamic_at, 64))
    )
    dynamic = struct.pack("<8Q", STRTAB, names_at, SONAME, 1, STRSZ, len(names), END, 0)
    return header(SHARED, segments=2) + segments + dynamic + names


def module(version: str) -> bytes:
    contents = [b"license=stand-in\0version=" + version.encode() + b"\0", b"\0.modinfo\0.shstrtab\0"]
    sections, at = [bytes(64)], 64
    for name, kind, content in ((1, 1, contents[0]), (10, 3, contents[1])):
        sections.append(struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, len(content), 0, 0, 1, 0))
        at += len(content)
    return header(RELOCATABLE, sections_at=at, sections=3) + b"".join(contents + sections)


if __name__ == "__main__":
    make = {"library": library, "module": module}[sys.argv[1]]
    Path(sys.argv[3]).write_bytes(make(sys.argv[2]))
