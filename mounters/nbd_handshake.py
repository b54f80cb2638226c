"""The fixed newstyle handshake of NBD: a client finds an export, and says how it will talk about it."""

import logging
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from mounters.export import Export, Handle
from mounters.nbd_protocol import (
    ALLOCATION,
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    LARGEST_PAYLOAD,
    LONGEST_STRING,
    NBD_MAGIC,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    Handshake,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)
from mounters.nbd_wire import Buffer, Gone, Input, Wire

log = logging.getLogger(__name__)

_LONGEST_OPTION = 64 << 10  # bytes of an option's data
_LONGEST_SKIPPED = 1 << 20  # of an option that is refused for its length; beyond it the connection ends
_MOST_OPTIONS = 1024
_SMALLEST_UNASKED = 512  # what a client that asks for no block sizes may be trusted with
_CONTEXT_ID = 1


class Refused(Exception):  # noqa: N818  (the client is at fault; nothing of ours failed)
    """The client breaks the protocol or a limit, so that the connection has to end."""


class ClientLeft(Gone):
    """The client ended the handshake as the protocol has it."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a handshake came to."""

    export: Export
    handle: Handle
    structured: bool
    context: int | None  # the number of base:allocation, where the client asked for it


class Secure(Protocol):
    """Makes the connection encrypted; raises OSError."""

    def __call__(self) -> Wire:
        """Return the encrypted wire."""


def transmission_flags(export: Export, *, structured: bool) -> TransmissionFlag:
    """Return what an export can do, as clients are told.

    Several connections show the same bytes only where nobody writes: each has a view of its own.
    """
    flag = TransmissionFlag
    flags = flag.HAS_FLAGS | flag.SEND_FLUSH | flag.SEND_CACHE
    if structured:
        flags |= flag.SEND_DF
    if export.writable:
        return flags | flag.SEND_FUA | flag.SEND_TRIM | flag.SEND_WRITE_ZEROES
    return flags | flag.READ_ONLY | flag.CAN_MULTI_CONN


def block_sizes(export: Export) -> tuple[int, int, int]:
    """Return the smallest and preferred block and the largest payload, within the protocol's bounds."""
    preferred = max(export.preferred_block, export.smallest_block, 512)
    preferred = min(1 << (preferred - 1).bit_length(), LARGEST_PAYLOAD)
    return export.smallest_block, preferred, LARGEST_PAYLOAD


class _Invalid(Exception):  # noqa: N818  (an answer)
    """The option's data makes no sense."""


@dataclass
class _Data:
    """An option's data, taken from its front."""

    data: bytes
    at: int = 0

    def take(self, record: str) -> int:
        layout = struct.Struct(record)
        if self.at + layout.size > len(self.data):
            raise _Invalid("the option's data is too short")
        value: int = layout.unpack_from(self.data, self.at)[0]
        self.at += layout.size
        return value

    def text(self) -> str:
        length = self.take(">I")
        if self.at + length > len(self.data):
            raise _Invalid("a string is longer than the option's data")
        if length > LONGEST_STRING:
            raise _Invalid(f"a string is longer than {LONGEST_STRING} bytes")
        self.at += length
        try:
            return self.data[self.at - length : self.at].decode()
        except UnicodeDecodeError:
            raise _Invalid("a string is not UTF-8") from None

    def end(self) -> None:
        if self.at != len(self.data):
            raise _Invalid("the option's data is too long")


@dataclass
class HandshakeSession:
    """One client's handshake; ``run`` returns what was agreed on.

    ``exports`` are by name, in the order in which they are listed; the empty name stands for
    ``default``. With ``secure``, nothing but encryption is answered before the connection is encrypted.
    """

    input: Input
    exports: Mapping[str, Export]
    default: str | None
    secure: Secure | None
    listed: bool = True
    structured: bool = False
    encrypted: bool = False
    _context_of: Export | None = None  # the export that base:allocation was chosen for
    _no_zeroes: bool = False
    _option: int = 0
    _agreement: Agreement | None = field(default=None, repr=False)

    def run(self) -> Agreement:
        """Shake hands; raise Gone, ClientLeft or Refused where it comes to nothing."""
        offered = int(Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES)  # ~ of an IntFlag knows no other bits
        self._send(GREETING.pack(NBD_MAGIC, OPTION_MAGIC, offered))
        (flags,) = CLIENT_FLAGS.unpack(self.input.exactly(CLIENT_FLAGS.size))
        if flags & ~offered:
            raise Refused(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & Handshake.NO_ZEROES)
        for _ in range(_MOST_OPTIONS):
            magic, self._option, length = OPTION.unpack(self.input.exactly(OPTION.size))
            if magic != OPTION_MAGIC:
                raise Refused("an option without its magic number")
            if not flags & Handshake.FIXED_NEWSTYLE and self._option != Option.EXPORT_NAME:
                raise Refused("an option other than EXPORT_NAME of a client that can't take replies")
            self._answer(length)
            if self._agreement is not None:
                return self._agreement
        raise Refused(f"more than {_MOST_OPTIONS} options")

    def _answer(self, length: int) -> None:
        if length > _LONGEST_OPTION:
            if self._option == Option.EXPORT_NAME or length > _LONGEST_SKIPPED:
                if self._option != Option.EXPORT_NAME:
                    self._reply(Reply.ERR_TOO_BIG, b"the option is too long")
                raise Refused(f"an option of {length} bytes")
            self.input.skip(length)
            self._reply(Reply.ERR_TOO_BIG, b"the option is too long")
            return
        data = _Data(self.input.exactly(length))
        if self.secure is not None and not self.encrypted and self._before_encryption(data):
            return
        try:
            self._dispatch(data)
        except _Invalid as error:
            if self._option == Option.EXPORT_NAME:
                raise Refused(str(error)) from None
            self._reply(Reply.ERR_INVALID, str(error).encode())

    def _before_encryption(self, data: _Data) -> bool:
        """Answer, and return True, unless the option is one of the two that may come in plain text."""
        if self._option in (Option.STARTTLS, Option.ABORT):
            return False
        if self._option == Option.EXPORT_NAME:
            raise Refused("EXPORT_NAME before TLS, which is required")
        self._reply(Reply.ERR_TLS_REQD, b"this server requires TLS")
        return True

    def _dispatch(self, data: _Data) -> None:
        match self._option:
            case Option.EXPORT_NAME:
                self._export_name(data)
            case Option.ABORT:
                self._abort()
            case Option.LIST:
                self._list(data)
            case Option.STARTTLS:
                self._start_tls(data)
            case Option.INFO | Option.GO:
                self._info(data)
            case Option.STRUCTURED_REPLY:
                data.end()
                self.structured = True
                self._reply(Reply.ACK)
            case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                self._meta_context(data)
            case _:
                self._reply(Reply.ERR_UNSUP)

    def _find(self, name: str) -> Export | None:
        if name == "" and self.default is not None:
            name = self.default
        return self.exports.get(name)

    def _export_name(self, data: _Data) -> None:
        if len(data.data) > LONGEST_STRING:
            raise _Invalid("a name that is too long")
        name = data.data.decode(errors="replace")
        export = self._find(name)
        if export is None:
            raise Refused(f"no export {name!r}")
        handle = self._open(export)
        if handle is None:
            raise Refused(f"export {name!r} can't be opened")
        try:
            flags = transmission_flags(export, structured=self.structured)
            self._send(EXPORT_NAME_REPLY.pack(export.size, flags) + bytes(0 if self._no_zeroes else 124))
        except BaseException:
            handle.close()
            raise
        self._agree(export, handle)

    def _abort(self) -> NoReturn:
        with suppress(Gone):  # it need not wait for that
            self._reply(Reply.ACK)
        raise ClientLeft("the client ended the handshake")

    def _list(self, data: _Data) -> None:
        data.end()
        if not self.listed:
            self._reply(Reply.ERR_POLICY, b"this server lists nothing")
            return
        for export in self.exports.values():
            name = export.name.encode()
            self._reply(Reply.SERVER, struct.pack(">I", len(name)) + name + _cut(export.description))
        self._reply(Reply.ACK)

    def _start_tls(self, data: _Data) -> None:
        data.end()
        if self.secure is None:
            self._reply(Reply.ERR_POLICY, b"this server does not offer TLS")
        elif self.encrypted:
            self._reply(Reply.ERR_INVALID, b"TLS is already in use")
        elif self.input.buffered:
            # Whoever sits in between could have put it there, to be taken for the client's own.
            raise Refused("plain text behind STARTTLS")
        else:
            self._reply(Reply.ACK)
            try:
                self.input = Input(self.secure())
            except OSError as error:
                raise Refused(str(error)) from None
            self.encrypted = True
            self.structured, self._context_of = False, None  # it starts anew

    def _info(self, data: _Data) -> None:
        name = data.text()
        kinds = [data.take(">H") for _ in range(data.take(">H"))]
        data.end()
        export = self._find(name)
        if export is None:
            self._reply(Reply.ERR_UNKNOWN, b"no export of that name")
            return
        if export.smallest_block > _SMALLEST_UNASKED and Info.BLOCK_SIZE not in kinds:
            self._reply(Reply.ERR_BLOCK_SIZE_REQD, b"ask for the block sizes of this export")
            return
        handle = None
        if self._option == Option.GO:
            handle = self._open(export)
            if handle is None:
                self._reply(Reply.ERR_PLATFORM, b"the export can't be opened now; the server's log says why")
                return
        try:
            flags = transmission_flags(export, structured=self.structured)
            self._reply(Reply.INFO, INFO_EXPORT.pack(Info.EXPORT, export.size, flags))
            if Info.NAME in kinds:
                self._reply(Reply.INFO, struct.pack(">H", Info.NAME) + export.name.encode())
            if Info.DESCRIPTION in kinds and export.description:
                self._reply(Reply.INFO, struct.pack(">H", Info.DESCRIPTION) + _cut(export.description))
            self._reply(Reply.INFO, INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *block_sizes(export)))
            self._reply(Reply.ACK)
        except BaseException:
            if handle is not None:
                handle.close()
            raise
        if handle is not None:
            self._agree(export, handle)

    def _meta_context(self, data: _Data) -> None:
        choose = self._option == Option.SET_META_CONTEXT
        if choose:
            self._context_of = None  # what was chosen before is void even if this fails
        if not self.structured:
            raise _Invalid("ask for structured replies first")
        name = data.text()
        queries = [data.text() for _ in range(data.take(">I"))]
        data.end()
        export = self._find(name)
        if export is None:
            self._reply(Reply.ERR_UNKNOWN, b"no export of that name")
            return
        wanted = ALLOCATION in queries or (not choose and (not queries or "base:" in queries))
        if wanted:
            number = _CONTEXT_ID if choose else 0
            self._reply(Reply.META_CONTEXT, struct.pack(">I", number) + ALLOCATION.encode())
        self._reply(Reply.ACK)
        if choose and wanted:
            self._context_of = export

    def _open(self, export: Export) -> Handle | None:
        try:
            return export.open()
        except Exception as error:  # whatever it is, the client is told, and the server goes on
            expected = getattr(error, "errno", None) is not None
            log.error(
                "export %r can't be opened: %s", export.name, error, exc_info=None if expected else error
            )
            return None

    def _agree(self, export: Export, handle: Handle) -> None:
        context = _CONTEXT_ID if self._context_of is export else None
        self._agreement = Agreement(export, handle, self.structured, context)

    def _reply(self, kind: Reply, data: bytes = b"") -> None:
        self._send(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, self._option, kind, len(data)) + data)

    def _send(self, data: Buffer) -> None:
        try:
            self.input.wire.send([data])
        except OSError as error:
            raise Gone(str(error)) from None


def _cut(text: str) -> bytes:
    """Return as much of a text as the protocol allows, whole characters."""
    return text.encode(errors="replace")[:LONGEST_STRING].decode(errors="ignore").encode()
