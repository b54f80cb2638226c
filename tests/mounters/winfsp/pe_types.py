"""The C types of a cffi extension for Windows, read from its file, as declarations for a cffi of this system.

An extension made by cffi holds tables of all types that its Python side may name: structs with the offsets
and sizes that the Windows compiler gave them, functions, callbacks. Their layout is that of cffi's
``parse_c_type.h``: https://github.com/python-cffi/cffi/blob/main/src/c/parse_c_type.h. The file is that of
"PE Format", Microsoft Learn.
``long`` has 32 bits and ``wchar_t`` 16 on Windows: they become int32_t and char16_t.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Opcodes and primitives of parse_c_type.h.
PRIMITIVE, POINTER, ARRAY, OPEN_ARRAY, STRUCT, ENUM, FUNCTION, FUNCTION_END, NOOP = (
    1,
    3,
    5,
    7,
    9,
    11,
    13,
    15,
    17,
)
FUNCTIONS = {23, 25, 27}  # functions of Python: with several arguments, none, one
CONSTANT, CONSTANT_INT, ENUM_VALUE, EXTERN_PYTHON = 29, 31, 11, 41
PRIMITIVES = {
    0: "void", 1: "_Bool", 2: "char", 3: "signed char", 4: "unsigned char", 5: "int16_t", 6: "uint16_t",
    7: "int32_t", 8: "uint32_t", 9: "int32_t", 10: "uint32_t", 11: "int64_t", 12: "uint64_t",
    16: "char16_t", 17: "int8_t", 18: "uint8_t", 19: "int16_t", 20: "uint16_t", 21: "int32_t", 22: "uint32_t",
    23: "int64_t", 24: "uint64_t", 25: "int64_t", 26: "uint64_t", 28: "uint64_t", 29: "int64_t",
}  # fmt: skip

# Names that cffi knows by itself on Windows; "Windows Data Types", Microsoft Learn.
WINDOWS_TYPES = """
typedef uint8_t BYTE, UINT8, BOOLEAN; typedef uint16_t WORD, USHORT, UINT16;
typedef int32_t BOOL, INT32, LONG; typedef uint32_t DWORD, ULONG, UINT32, UINT;
typedef uint64_t UINT64, ULONGLONG, SIZE_T, ULONG_PTR; typedef int64_t INT64, LONGLONG;
typedef char CHAR; typedef char16_t WCHAR; typedef void *PVOID, *HANDLE;
typedef char16_t *PWSTR, *LPWSTR; typedef const char16_t *PCWSTR, *LPCWSTR;
"""


class NotAnExtensionError(Exception):
    """The file is not a 64-bit extension for Windows made by cffi."""


@dataclass(frozen=True)
class Field:
    name: str
    offset: int
    size: int  # bytes; negative: up to what follows
    type: int


@dataclass(frozen=True)
class Struct:
    name: str
    size: int
    alignment: int
    fields: tuple[Field, ...]


class Image:
    """A PE file as it lies in memory."""

    def __init__(self, data: bytes) -> None:
        header = struct.unpack_from("<I", data, 0x3C)[0]
        if data[header : header + 4] != b"PE\0\0" or data[header + 24 : header + 26] != b"\x0b\x02":
            raise NotAnExtensionError("not a 64-bit PE file")
        count, optional = struct.unpack_from("<H12xH", data, header + 6)
        self.base: int = struct.unpack_from("<Q", data, header + 48)[0]
        self.sections = []
        memory = bytearray()
        for number in range(count):
            at = header + 24 + optional + 40 * number
            size, start, stored, place = struct.unpack_from("<4I", data, at + 8)
            memory.extend(bytes(start + max(size, stored) - len(memory)))
            memory[start : start + stored] = data[place : place + stored]
            self.sections.append((data[at : at + 8].rstrip(b"\0"), start, size))
        self.memory = bytes(memory)

    def holds(self, address: int) -> bool:
        return address in range(self.base, self.base + len(self.memory))

    def unpack(self, format_: str, address: int) -> tuple[Any, ...]:
        return struct.unpack_from(format_, self.memory, address - self.base)

    def text(self, address: int) -> str:
        start = address - self.base
        return self.memory[start : self.memory.index(b"\0", start)].decode("ascii")


class Types:
    """The tables of one extension."""

    def __init__(self, data: bytes) -> None:
        self.image = image = Image(data)
        tables, counts, number_of_types = self._find_context()
        types, names, fields, structs, enums, typedefs = tables
        self.opcodes = image.unpack(f"<{number_of_types}Q", types)
        self.globals: dict[str, tuple[int, int]] = {}  # name: what it is, type
        for at in range(names, names + 32 * counts[0], 32):
            name, _, opcode = image.unpack("<3Q", at)
            self.globals[image.text(name)] = (opcode & 0xFF, opcode >> 8)
        self.structs = [self._struct(structs + 40 * number, fields) for number in range(counts[1])]
        self.enums = [self._enum(enums + 24 * number) for number in range(counts[2])]
        self.typedefs: dict[str, int] = {}
        for at in range(typedefs, typedefs + 16 * counts[3], 16):
            name, type_ = image.unpack("<Qi", at)
            self.typedefs[image.text(name)] = type_

    def _find_context(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Return the addresses of the six tables, four counts, and the number of types."""
        image = self.image
        for name, start, size in image.sections:
            if name not in (b".rdata", b".data"):
                continue
            for at in range(image.base + start, image.base + start + size - 88, 8):
                values = image.unpack("<6Q4iQ2i", at)
                tables, counts, includes, number_of_types = values[:6], values[6:10], values[10], values[11]
                if (
                    includes == 0
                    and all(map(image.holds, tables))
                    and all(0 < count < 10_000 for count in (*counts, number_of_types))
                    and tables[1] < tables[3] < tables[0] + (1 << 20)
                ):
                    return tables, counts, number_of_types
        raise NotAnExtensionError("no tables of cffi in it")

    def _struct(self, at: int, fields: int) -> Struct:
        name, _, _, size, alignment, first, count = self.image.unpack("<Qiiqiii", at)
        return Struct(
            self.image.text(name),
            size,
            alignment,
            tuple(self._field(fields + 32 * number) for number in range(first, first + count)),
        )

    def _field(self, at: int) -> Field:
        name, offset, size, opcode = self.image.unpack("<QqqQ", at)
        return Field(self.image.text(name), offset, size, opcode >> 8)

    def _enum(self, at: int) -> tuple[str, int]:
        name, _, primitive = self.image.unpack("<Qii", at)
        return self.image.text(name), primitive

    # Declarations

    def declare(self, type_: int, name: str) -> str:
        """Return the C declaration of a name with a type."""
        opcode, argument = self.opcodes[type_] & 0xFF, self.opcodes[type_] >> 8
        if opcode == PRIMITIVE:
            return f"{PRIMITIVES[argument]} {name}"
        if opcode == POINTER:
            return self.declare(argument, f"(*{name})")
        if opcode == ARRAY:
            return self.declare(argument, f"({name}[{self.opcodes[type_ + 1]}])")
        if opcode == OPEN_ARRAY:
            return self.declare(argument, f"({name}[])")
        if opcode == STRUCT:
            return f"struct {tag(self.structs[argument].name)} {name}"
        if opcode == ENUM:
            return f"{PRIMITIVES[self.enums[argument][1]]} {name}"
        if opcode == FUNCTION:
            return self.declare(argument, f"{name}({self._arguments(type_ + 1)})")
        if opcode == NOOP:
            return self.declare(argument, name)
        raise NotAnExtensionError(f"opcode {opcode}")

    def _arguments(self, at: int) -> str:
        found = []
        while self.opcodes[at] & 0xFF != FUNCTION_END:
            # An array that is an argument is a pointer; the table says so already.
            found.append(self.declare(at, ""))
            at += 1
        return ", ".join(found) or "void"

    def body(self, struct_: Struct) -> str:
        """Return a struct's declaration, with padding where the table leaves a gap."""
        if not struct_.fields:  # opaque to Python, but of a known size
            unit = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}[struct_.alignment]
            return f"struct {tag(struct_.name)} {{ {unit} _opaque[{struct_.size // struct_.alignment}]; }};"
        lines, end = [], 0
        following = [*(field.offset for field in struct_.fields[1:]), struct_.size]
        for field, next_offset in zip(struct_.fields, following, strict=True):
            if field.offset > end:
                lines.append(f"uint8_t _gap_{end}[{field.offset - end}];")
            size, name = field.size, field.name
            if size < 0:
                size = next_offset - field.offset
                name = self._open_array(field, size)
                lines.append(f"{name};")
            else:
                lines.append(f"{self.declare(field.type, name)};")
            end = field.offset + size
        if end < struct_.size:
            lines.append(f"uint8_t _gap_{end}[{struct_.size - end}];")
        return f"struct {tag(struct_.name)} {{ {' '.join(lines)} }};"

    def _open_array(self, field: Field, size: int) -> str:
        type_ = field.type
        while self.opcodes[type_] & 0xFF == NOOP:
            type_ = self.opcodes[type_] >> 8
        element = self.opcodes[type_] >> 8
        width = 8 if self.opcodes[element] & 0xFF in (POINTER, FUNCTION) else 2
        return self.declare(element, f"{field.name}[{size // width or ''}]")

    def declarations(self) -> str:
        """Return all types as text for ``FFI.cdef``."""
        lines = [WINDOWS_TYPES]
        lines += [f"struct {tag(each.name)};" for each in self.structs]
        for name, type_ in self.typedefs.items():
            lines.append(f"typedef {self.declare(type_, name)};")
        done: set[str] = set()
        for each in self.structs:
            self._with_what_it_holds(each, done, lines)
        for name, (kind, type_) in self.globals.items():
            if kind in FUNCTIONS or kind == EXTERN_PYTHON:
                lines.append(f"typedef {self._function(type_, f'type_of_{name}')};")
        return "\n".join(lines)

    def _function(self, type_: int, name: str) -> str:
        while self.opcodes[type_] & 0xFF == NOOP:
            type_ = self.opcodes[type_] >> 8
        return self.declare(type_, name)

    def _with_what_it_holds(self, each: Struct, done: set[str], lines: list[str]) -> None:
        if each.name in done:
            return
        done.add(each.name)
        for field in each.fields:
            type_ = field.type
            while self.opcodes[type_] & 0xFF == NOOP:
                type_ = self.opcodes[type_] >> 8
            if self.opcodes[type_] & 0xFF == STRUCT:
                self._with_what_it_holds(self.structs[self.opcodes[type_] >> 8], done, lines)
        lines.append(self.body(each))


def tag(name: str) -> str:
    """Return a struct's name for C: one without a tag has a $ before that of its typedef."""
    return name.replace("$", "s_")


def read_types(path: Path) -> Types:
    return Types(path.read_bytes())


def make_ffi(types: Types) -> Any:
    """Return a cffi.FFI with these types; what the Windows compiler said of their layout holds."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(types.declarations())
    for each in types.structs:
        c_type = ffi.typeof(f"struct {tag(each.name)}")
        assert (ffi.sizeof(c_type), ffi.alignof(c_type)) == (each.size, each.alignment), each.name
        for field in each.fields:
            assert ffi.offsetof(c_type, field.name) == field.offset, (each.name, field.name)
    return ffi
