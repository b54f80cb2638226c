"""File names that are stored as UTF-16."""

from codecs import utf_16_le_decode


def decode_name(raw: bytes | bytearray) -> str:
    """Return a UTF-16 name; a lone surrogate survives as the escaped bytes of its UTF-8 form."""
    try:
        return utf_16_le_decode(raw, "strict", True)[0]
    except UnicodeDecodeError:
        text = raw.decode("utf-16-le", "surrogatepass")
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
