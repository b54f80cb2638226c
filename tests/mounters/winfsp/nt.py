"""What callers of Windows' file systems know: statuses, access rights, the upper case of names.

Sources: [MS-ERREF] 2.3.1 NTSTATUS Values; [MS-DTYP] 2.4.3 ACCESS_MASK; "File Access Rights Constants",
"NtCreateFile function" and "File Attribute Constants", Microsoft Learn.
"""

import sys
from enum import IntEnum, IntFlag
from functools import cache

if sys.platform == "win32":
    import ctypes

    _upcase = ctypes.WinDLL("ntdll").RtlUpcaseUnicodeChar
    _upcase.argtypes, _upcase.restype = [ctypes.c_uint16], ctypes.c_uint16


class Status(IntEnum):
    """[MS-ERREF] 2.3.1."""

    SUCCESS = 0
    BUFFER_OVERFLOW = 0x80000005
    NO_MORE_FILES = 0x80000006
    INVALID_PARAMETER = 0xC000000D
    NO_SUCH_FILE = 0xC000000F
    INVALID_DEVICE_REQUEST = 0xC0000010
    END_OF_FILE = 0xC0000011
    ACCESS_DENIED = 0xC0000022
    OBJECT_NAME_INVALID = 0xC0000033
    OBJECT_NAME_NOT_FOUND = 0xC0000034
    OBJECT_NAME_COLLISION = 0xC0000035
    OBJECT_PATH_NOT_FOUND = 0xC000003A
    DATA_ERROR = 0xC000003E
    CRC_ERROR = 0xC000003F
    INVALID_SECURITY_DESCR = 0xC0000079
    MEDIA_WRITE_PROTECTED = 0xC00000A2
    FILE_IS_A_DIRECTORY = 0xC00000BA
    UNEXPECTED_IO_ERROR = 0xC00000E9
    FILE_CORRUPT_ERROR = 0xC0000102
    NOT_A_DIRECTORY = 0xC0000103
    CANCELLED = 0xC0000120
    IO_DEVICE_ERROR = 0xC0000185
    VOLUME_DISMOUNTED = 0xC000026E
    NOT_A_REPARSE_POINT = 0xC0000275
    HOST_UNREACHABLE = 0xC000023D
    NO_SUCH_DEVICE = 0xC000000E


class NtError(Exception):
    """What the application gets instead of an answer."""

    def __init__(self, status: int, doing: str) -> None:
        try:
            name = Status(status).name
        except ValueError:
            name = "unknown"
        super().__init__(f"{doing}: 0x{status:08X} {name}")
        self.status = status


class Access(IntFlag):
    """[MS-DTYP] 2.4.3 and the rights of files."""

    READ_DATA = 0x1  # LIST_DIRECTORY
    WRITE_DATA = 0x2  # ADD_FILE
    APPEND_DATA = 0x4  # ADD_SUBDIRECTORY
    READ_EA = 0x8
    WRITE_EA = 0x10
    EXECUTE = 0x20  # TRAVERSE
    DELETE_CHILD = 0x40
    READ_ATTRIBUTES = 0x80
    WRITE_ATTRIBUTES = 0x100
    DELETE = 0x10000
    READ_CONTROL = 0x20000
    WRITE_DAC = 0x40000
    WRITE_OWNER = 0x80000
    SYNCHRONIZE = 0x100000
    MAXIMUM_ALLOWED = 0x02000000
    GENERIC_ALL = 0x10000000
    GENERIC_EXECUTE = 0x20000000
    GENERIC_WRITE = 0x40000000
    GENERIC_READ = 0x80000000


READ = 0x120089  # what GENERIC_READ means for files
WRITE = 0x120116
EXECUTE = 0x1200A0
ALL = 0x1F01FF
LIST = 0x100081  # what a program that lists a directory asks for
GENERIC = {
    Access.GENERIC_READ: READ,
    Access.GENERIC_WRITE: WRITE,
    Access.GENERIC_EXECUTE: EXECUTE,
    Access.GENERIC_ALL: ALL,
}


class Disposition(IntEnum):
    """NtCreateFile's CreateDisposition."""

    SUPERSEDE = 0
    OPEN = 1
    CREATE = 2
    OPEN_IF = 3
    OVERWRITE = 4
    OVERWRITE_IF = 5


class Options(IntFlag):
    """NtCreateFile's CreateOptions."""

    DIRECTORY_FILE = 0x1
    SEQUENTIAL_ONLY = 0x4
    NON_DIRECTORY_FILE = 0x40
    DELETE_ON_CLOSE = 0x1000
    OPEN_FOR_BACKUP_INTENT = 0x4000
    OPEN_REPARSE_POINT = 0x200000


class Attribute(IntFlag):
    """File attribute constants."""

    READONLY = 0x1
    HIDDEN = 0x2
    SYSTEM = 0x4
    DIRECTORY = 0x10
    ARCHIVE = 0x20
    NORMAL = 0x80
    SPARSE = 0x200
    REPARSE_POINT = 0x400
    COMPRESSED = 0x800
    NOT_CONTENT_INDEXED = 0x2000
    ENCRYPTED = 0x4000


FORBIDDEN = frozenset('"*/:<>?|\\') | {chr(number) for number in range(32)}  # in a name that is opened

# Where Windows' table of upper case (RtlUpcaseUnicodeChar) is not the one-to-one part of Unicode's:
_NOT_FOLDED = frozenset(
    "\xb5\u0131\u017f\u01c5\u01c8\u01cb\u01f2\u0345\u03c2\u03d0\u03d1\u03d5\u03d6\u03f0\u03f1\u03f5\u1e9b\u1fbe"
) | {chr(number) for number in range(0x1C80, 0x1C89)}
_FOLDED = {
    chr(number): chr(number + 8) for first in (0x1F80, 0x1F90, 0x1FA0) for number in range(first, first + 8)
} | {"\u1fb3": "\u1fbc", "\u1fc3": "\u1fcc", "\u1ff3": "\u1ffc"}


def upper(name: str) -> str:
    """Return a name in the upper case of the driver: each UTF-16 unit for itself, of the same length."""
    return "".join(map(_upper, name))


@cache
def _upper(character: str) -> str:
    if ord(character) > 0xFFFF:  # two units without a case
        return character
    if sys.platform == "win32":  # where it can be asked
        return chr(_upcase(ord(character)) & 0xFFFF)
    if character in _NOT_FOLDED:
        return character
    if character in _FOLDED:
        return _FOLDED[character]
    changed = character.upper()
    return changed if len(changed) == 1 and ord(changed) < 0x10000 else character


def units(name: str) -> int:
    """Return a name's length as Windows counts it."""
    return len(name.encode("utf-16-le", "surrogatepass")) // 2
