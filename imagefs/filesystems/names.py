"""File names as they are stored: bytes, UTF-8 as a rule, or UTF-16.

The text is the same on every system: what is no Unicode is in it as surrogate escapes, also where the system
itself (``os.fsencode``) knows another way.
"""

from codecs import utf_16_le_decode


def decode_name(raw: bytes | bytearray) -> str:
    """Return a UTF-16 name; a lone surrogate survives as the escaped bytes of its UTF-8 form."""
    try:
        return utf_16_le_decode(raw, "strict", True)[0]
    except UnicodeDecodeError:
        text = raw.decode("utf-16-le", "surrogatepass")
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def plain_name(name: str) -> str:
    """Return a name with its lone surrogates as they are stored, not escaped.

    Raises UnicodeError for a name that has other escaped bytes: none that is stored as UTF-16.
    """
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogatepass")


def name_of_bytes(raw: bytes) -> str:
    """Return the name that is stored as these bytes."""
    return raw.decode("utf-8", "surrogateescape")


def bytes_of_name(name: str) -> bytes:
    """Return the bytes of a name, whatever they were."""
    return name.encode("utf-8", "surrogateescape")
