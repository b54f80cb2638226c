"""The NBD protocol's numbers and records; all numbers on the wire are big-endian.

Source: "The NBD protocol", doc/proto.md of https://github.com/NetworkBlockDevice/nbd. Names are those of
the specification. Unknown to this module: extended headers, which are not offered.
"""

import errno
import struct
from enum import IntEnum, IntFlag

DEFAULT_PORT = 10809
LONGEST_STRING = 4096  # bytes of UTF-8: names, descriptions, queries
LARGEST_PAYLOAD = 32 << 20  # bytes of one read or write; every client may count on as many

# Handshake
GREETING = struct.Struct(">8sQH")  # NBDMAGIC, IHAVEOPT, handshake flags
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")  # IHAVEOPT, option, bytes of data
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, bytes of data
EXPORT_NAME_REPLY = struct.Struct(">QH")  # size, transmission flags; then 124 zeros unless NO_ZEROES

NBD_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9


class Handshake(IntFlag):
    """What the server offers, and the client takes."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    """What a client asks for before the transmission."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    """Types of replies to options; errors have the highest bit."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 1 << 31 | 1
    ERR_POLICY = 1 << 31 | 2
    ERR_INVALID = 1 << 31 | 3
    ERR_PLATFORM = 1 << 31 | 4
    ERR_TLS_REQD = 1 << 31 | 5
    ERR_UNKNOWN = 1 << 31 | 6
    ERR_SHUTDOWN = 1 << 31 | 7
    ERR_BLOCK_SIZE_REQD = 1 << 31 | 8
    ERR_TOO_BIG = 1 << 31 | 9


class Info(IntEnum):
    """Kinds of information about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


INFO_EXPORT = struct.Struct(">HQH")  # kind, size, transmission flags
INFO_BLOCK_SIZE = struct.Struct(">HIII")  # kind, smallest block, preferred block, largest payload


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10


# Transmission
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
SIMPLE_REPLY = struct.Struct(">IIQ")  # magic, error, cookie
CHUNK = struct.Struct(">IHHQI")  # magic, flags, type, cookie, bytes that follow
DATA_CHUNK = struct.Struct(">IHHQIQ")  # … and offset; then the data
HOLE_CHUNK = struct.Struct(">IHHQIQI")  # … offset, length
ERROR_CHUNK = struct.Struct(">IHHQIIH")  # … error, bytes of the message
ERROR_OFFSET_CHUNK = struct.Struct(">IHHQIIHQ")  # … and offset (the message, which comes before it, is empty)
STATUS_CHUNK = struct.Struct(">IHHQII")  # … metadata context; then descriptors
STATUS_DESCRIPTOR = struct.Struct(">II")  # length, state

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF
CHUNK_DONE = 1 << 0  # the chunk's flag: the last one of its reply


class Command(IntEnum):
    """What a client asks for in the transmission."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """How a command is meant."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3


class Chunk(IntEnum):
    """Types of the chunks of a structured reply; errors have the highest bit."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 1 << 15 | 1
    ERROR_OFFSET = 1 << 15 | 2


ALLOCATION = "base:allocation"
STATE_DATA = 0
STATE_HOLE = 3  # a hole (1) that reads as zeros (2)

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108

_ERRORS = {
    errno.EPERM: EPERM,
    errno.EACCES: EPERM,
    errno.EROFS: EPERM,
    errno.ENOMEM: ENOMEM,
    errno.EINVAL: EINVAL,
    errno.ENOSPC: ENOSPC,
    errno.EDQUOT: ENOSPC,
    errno.EFBIG: ENOSPC,
    errno.EOVERFLOW: EOVERFLOW,
    errno.ENOTSUP: ENOTSUP,
    errno.EOPNOTSUPP: ENOTSUP,
    errno.ESHUTDOWN: ESHUTDOWN,
}


def error_on_the_wire(number: int) -> int:
    """Return the protocol's error for an errno of this system; EIO for what it has no number for."""
    return _ERRORS.get(number, EIO)
