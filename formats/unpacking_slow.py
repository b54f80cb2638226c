"""The decoders of ``native/unpack.c`` in Python, for where there was no compiler: the same bytes, slowly.

What can't be decoded is a ValueError or IndexError.
"""

from collections.abc import Sequence

_WINDOW = 32768  # bytes that LZX looks back, and that a chunk of it has at most
_MAIN = 256 + 8 * 30  # main symbols of LZX: bytes, and eight for each of 30 position slots
_LENGTHS = 249
_CALL = 0xE8
_FILE = 12_000_000  # bytes of the file that LZX translates calls for
_LZNT1_CHUNK = 4096


class _Bits:
    """Bits from the left of little-endian units of 16, taken into the buffer as late as possible."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at
        self.left = 0
        self._buffer = 0

    def refill(self, count: int = 16) -> None:
        """Have ``count`` bits in the buffer, as far as there are so many."""
        while self.left < count and self.at + 2 <= len(self.data):
            self._buffer = self._buffer << 16 | int.from_bytes(self.data[self.at : self.at + 2], "little")
            self.at += 2
            self.left += 16

    def take(self, count: int) -> int:
        """Return the next bits as a number."""
        self.refill(count)
        if count > self.left:
            raise ValueError("the input ends")
        self.left -= count
        value = self._buffer >> self.left
        self._buffer &= (1 << self.left) - 1
        return value

    def symbol(self, code: "_Code") -> int:
        """Return the symbol whose word comes next."""
        self.refill(code.longest)
        missing = code.longest - self.left
        word = self._buffer << missing if missing > 0 else self._buffer >> -missing
        symbol, length = code.table[word]
        self.take(length)
        return symbol

    def align(self) -> None:
        """Go behind the unit that is begun; where none is, behind the next."""
        self.at = (8 * self.at - self.left) // 16 * 2 + 2
        self.left = self._buffer = 0


class _Code:
    """A canonical Huffman code from its words' lengths; one without any word has no symbol."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.longest = max(lengths)
        self.table: list[tuple[int, int]] = []
        for length in range(1, self.longest + 1):
            for symbol, its in enumerate(lengths):
                if its == length:
                    self.table += [(symbol, length)] * (1 << self.longest - length)
        if self.longest and len(self.table) != 1 << self.longest:
            raise ValueError("a code is not complete")


def _copy(out: bytearray, distance: int, length: int, limit: int) -> None:
    if not 0 < distance <= len(out) or length > limit - len(out):
        raise ValueError("a match reaches outside the output")
    for _ in range(length):
        out.append(out[-distance])


def xpress_huffman(data: bytes, size: int) -> bytes:
    """Decode a chunk of up to 64 KiB ([MS-XCA] 2.2)."""
    if len(data) < 256 or size > 1 << 16:
        raise ValueError("no code")
    code = _Code([length for pair in data[:256] for length in (pair & 15, pair >> 4)])
    bits = _Bits(data, 256)
    out = bytearray()
    while len(out) < size:
        bits.refill()
        symbol = bits.symbol(code)
        if symbol < 256:
            out.append(symbol)
            continue
        bits.refill()
        length = symbol & 15
        distance = 1 << (symbol >> 4 & 15) | bits.take(symbol >> 4 & 15)
        if length == 15:
            length += data[bits.at]
            bits.at += 1
            if length == 15 + 255:
                length = int.from_bytes(data[bits.at : bits.at + 2], "little")
                bits.at += 2
                if length < 15 or bits.at > len(data):
                    raise ValueError("a match's length")
        _copy(out, distance, length + 3, size)
    return bytes(out)


def lzx(data: bytes, size: int) -> bytes:
    """Decode a chunk of up to 32 KiB as WIM and WOF have it."""
    if size > _WINDOW:
        raise ValueError("a chunk is larger than the window")
    bits = _Bits(data, 0)
    recent = [1, 1, 1]
    main, lengths = [0] * _MAIN, [0] * _LENGTHS
    out = bytearray()
    while len(out) < size:
        kind = bits.take(3)
        end = len(out) + (_WINDOW if bits.take(1) else bits.take(16))
        if end > size or kind not in (1, 2, 3):
            raise ValueError("a block can't be")
        if kind == 3:
            _plain_block(bits, recent, out, end - len(out))
            continue
        aligned = _Code([bits.take(3) for _ in range(8)]) if kind == 2 else None
        _read_lengths(bits, main, 0, 256)
        _read_lengths(bits, main, 256, _MAIN)
        _read_lengths(bits, lengths, 0, _LENGTHS)
        _block(bits, (_Code(main), _Code(lengths), aligned), recent, out, end)
    _untranslate(out)
    return bytes(out)


def _read_lengths(bits: _Bits, lengths: list[int], at: int, end: int) -> None:
    """Read lengths of a code, which are told as differences from those before."""
    code = _Code([bits.take(4) for _ in range(20)])
    while at < end:
        symbol, run, value = bits.symbol(code), 1, 0
        if symbol == 17:
            run = 4 + bits.take(4)
        elif symbol == 18:
            run = 20 + bits.take(5)
        else:
            if symbol == 19:
                run = 4 + bits.take(1)
                symbol = bits.symbol(code)
            if symbol > 16:
                raise ValueError("a code's lengths")
            value = (lengths[at] - symbol) % 17
        if run > end - at:
            raise ValueError("a code's lengths")
        lengths[at : at + run] = [value] * run
        at += run


def _block(
    bits: _Bits, codes: tuple[_Code, _Code, _Code | None], recent: list[int], out: bytearray, end: int
) -> None:
    main, lengths, aligned = codes
    while len(out) < end:
        symbol = bits.symbol(main)
        if symbol < 256:
            out.append(symbol)
            continue
        slot, length = symbol - 256 >> 3, symbol & 7
        if length == 7:
            length += bits.symbol(lengths)
        if slot < 3:
            recent[0], recent[slot] = recent[slot], recent[0]
        else:
            extra = max(0, slot // 2 - 1)
            base = slot if slot < 4 else (2 + (slot & 1)) << extra
            if aligned and extra >= 3:
                base += bits.take(extra - 3) << 3
                base += bits.symbol(aligned)
            else:
                base += bits.take(extra)
            recent[:] = base - 2, recent[0], recent[1]
        _copy(out, recent[0], length + 2, end)


def _plain_block(bits: _Bits, recent: list[int], out: bytearray, size: int) -> None:
    bits.align()
    start = bits.at + 12
    if start + size > len(bits.data):
        raise ValueError("the input ends")
    recent[:] = (int.from_bytes(bits.data[at : at + 4], "little") for at in range(bits.at, start, 4))
    out += bits.data[start : start + size]
    bits.at = start + size + size % 2


def _untranslate(out: bytearray) -> None:
    """Make absolute targets of calls relative again."""
    at = out.find(_CALL)
    while 0 <= at < len(out) - 10:
        target = int.from_bytes(out[at + 1 : at + 5], "little", signed=True)
        if -at <= target < _FILE:
            target += -at if target >= 0 else _FILE
            out[at + 1 : at + 5] = target.to_bytes(4, "little", signed=True)
        at = out.find(_CALL, at + 5)


def lznt1(data: bytes, size: int) -> bytes:
    """Decode up to ``size`` bytes ([MS-XCA] 2.5); fewer where the input, or a header of 0, ends it."""
    out = bytearray()
    at = 0
    while len(out) < size and at + 2 <= len(data):
        header = int.from_bytes(data[at : at + 2], "little")
        if not header:
            break
        end = at + 3 + (header & 0xFFF)
        out += bytes(-len(out) % _LZNT1_CHUNK)  # the chunk before was short
        if header >> 12 & 7 != 3 or end > len(data) or len(out) >= size:
            raise ValueError("a chunk's header")
        wanted = min(_LZNT1_CHUNK, size - len(out))
        if header & 0x8000:
            out += _lznt1_chunk(data, at + 2, end, wanted)
        elif end - at - 2 > _LZNT1_CHUNK:
            raise ValueError("a chunk's header")
        else:
            out += data[at + 2 : min(end, at + 2 + wanted)]
        at = end
    return bytes(out)


def _lznt1_chunk(data: bytes, at: int, end: int, wanted: int) -> bytes:
    out = bytearray()
    while at < end and len(out) < wanted:
        flags = data[at] | 0x100
        at += 1
        while flags > 1 and at < end and len(out) < wanted:
            if flags & 1:
                if at + 2 > end:
                    raise ValueError("a match")
                token = int.from_bytes(data[at : at + 2], "little")
                split = 12 - max(0, (len(out) - 1).bit_length() - 4)
                at += 2
                _copy(out, (token >> split) + 1, (token & (1 << split) - 1) + 3, _LZNT1_CHUNK)
            else:
                out.append(data[at])
                at += 1
            flags >>= 1
    return bytes(out[:wanted])
