"""Security descriptors in self-relative form ([MS-DTYP] 2.4.6): who may read what is mounted."""

import struct

from mounters.windows_calls import calls

_HEADER = struct.Struct("<BxHIIII")  # revision, control, owner, group, SACL, DACL
_ACL = struct.Struct("<BxHHxx")  # revision, size, count of ACEs
_ACE = struct.Struct("<BBHI")  # type, flags, size, mask; a SID follows
_DACL_PRESENT = 0x0004
_SACL_PRESENT = 0x0010
_DACL_PROTECTED = 0x1000
_SELF_RELATIVE = 0x8000
_ALLOWED, _ALLOWED_COMPOUND, _ALLOWED_OBJECT, _ALLOWED_CALLBACK, _ALLOWED_CALLBACK_OBJECT = 0, 4, 5, 9, 11
_ALLOWING = {_ALLOWED, _ALLOWED_COMPOUND, _ALLOWED_OBJECT, _ALLOWED_CALLBACK, _ALLOWED_CALLBACK_OBJECT}
_MOST_PARTS = 15  # of a SID

READ_AND_EXECUTE = 0x1200A9  # FILE_GENERIC_READ | FILE_GENERIC_EXECUTE
# [MS-DTYP] 2.4.3: what the generic rights mean for files
_GENERIC = {0x80000000: 0x120089, 0x40000000: 0x120116, 0x20000000: 0x1200A0, 0x10000000: 0x1F01FF}

# [MS-DTYP] 2.4.2.4, well-known SIDs
EVERYONE = "S-1-1-0"
OWNER_RIGHTS = "S-1-3-4"
SYSTEM = "S-1-5-18"
ADMINISTRATORS = "S-1-5-32-544"


def sid_bytes(text: str) -> bytes:
    """Return a SID as it is stored ([MS-DTYP] 2.4.2.2). Raises ValueError for what is none."""
    prefix, revision, authority, *parts = text.split("-")
    if prefix != "S" or revision != "1" or not 1 <= len(parts) <= _MOST_PARTS:
        raise ValueError(f"{text} is no SID")
    return (
        bytes((1, len(parts)))
        + int(authority, 0).to_bytes(6, "big")
        + b"".join(int(part).to_bytes(4, "little") for part in parts)
    )


def descriptor_for(*readers: str) -> bytes:
    """Return a descriptor that lets these SIDs read, and nobody, the owner neither, change anything.

    Without rights for its owner Windows would let that one change the descriptor.
    """
    aces = b""
    for reader in (*readers, OWNER_RIGHTS):
        sid = sid_bytes(reader)
        aces += _ACE.pack(_ALLOWED, 0, _ACE.size + len(sid), READ_AND_EXECUTE) + sid
    acl = _ACL.pack(2, _ACL.size + len(aces), len(readers) + 1) + aces
    owner = sid_bytes(ADMINISTRATORS)
    control = _SELF_RELATIVE | _DACL_PRESENT | _DACL_PROTECTED
    group = _HEADER.size + len(owner)
    header = _HEADER.pack(1, control, _HEADER.size, group, 0, group + len(owner))
    return header + owner + owner + acl


def own_descriptor(*, allow_other: bool) -> bytes:
    """Return the descriptor of everything mounted: for the user of this process, or for everyone.

    Raises OSError where it cannot be found out who that is.
    """
    if allow_other:
        return descriptor_for(EVERYONE)
    return descriptor_for(*dict.fromkeys((SYSTEM, ADMINISTRATORS, calls().user())))


def is_usable(descriptor: bytes) -> bool:
    """Tell whether a volume's own descriptor can be given: whole, self-relative, with owner and group."""
    if len(descriptor) < _HEADER.size:
        return False
    revision, control, owner, group, sacl, dacl = _HEADER.unpack_from(descriptor)
    if revision != 1 or not control & _SELF_RELATIVE:
        return False
    if not (_is_sid(descriptor, owner) and _is_sid(descriptor, group)):
        return False
    lists = [at for at, bit in ((sacl, _SACL_PRESENT), (dacl, _DACL_PRESENT)) if control & bit and at]
    return all(_is_acl(descriptor, at) for at in lists)


def for_reading(descriptor: bytes) -> bytes:
    """Return a usable descriptor without the rights to change anything.

    Windows is asked for all the rights that one has, as often as for those that are needed: it must not
    answer with rights that opening a file here refuses.
    """
    _, control, owner, group, _, dacl = _HEADER.unpack_from(descriptor)
    control &= ~_SACL_PRESENT
    sids = [_sid(descriptor, at) for at in (owner, group)]
    if control & _DACL_PRESENT and dacl:
        _, size, _ = _ACL.unpack_from(descriptor, dacl)
        acl = bytearray(descriptor[dacl : dacl + size])
        for at, kind, mask in _aces(acl, 0):
            if kind in _ALLOWING:
                struct.pack_into("<I", acl, at + 4, _reading(mask))
    else:  # everyone may do everything
        everyone = descriptor_for(EVERYONE)
        acl = bytearray(everyone[_HEADER.unpack_from(everyone)[-1] :])
        control |= _DACL_PRESENT
    at_group = _HEADER.size + len(sids[0])
    header = _HEADER.pack(1, control, _HEADER.size, at_group, 0, at_group + len(sids[1]))
    return header + b"".join(sids) + bytes(acl)


def _reading(mask: int) -> int:
    for generic, meaning in _GENERIC.items():
        if mask & generic:
            mask |= meaning
    return mask & READ_AND_EXECUTE


def _sid(data: bytes, at: int) -> bytes:
    return data[at : at + 8 + 4 * data[at + 1]]


def _is_sid(data: bytes, at: int) -> bool:
    if not _HEADER.size <= at <= len(data) - 8:
        return False
    revision, parts = data[at : at + 2]
    return revision == 1 and parts <= _MOST_PARTS and at + 8 + 4 * parts <= len(data)


def _is_acl(data: bytes, at: int) -> bool:
    if not _HEADER.size <= at <= len(data) - _ACL.size:
        return False
    revision, size, count = _ACL.unpack_from(data, at)
    if revision not in (2, 4) or at + size > len(data):
        return False
    return len(_aces(data, at)) == int(count)


def _aces(data: bytes | bytearray, acl: int) -> list[tuple[int, int, int]]:
    """Return the (place, type, mask) of a list's ACEs, up to the first that cannot be."""
    _, size, count = _ACL.unpack_from(data, acl)
    at, end = acl + _ACL.size, acl + size
    found = []
    for _ in range(count):
        if at + _ACE.size > end:
            break
        kind, _, length, mask = _ACE.unpack_from(data, at)
        if length < _ACE.size or length % 4 or at + length > end:
            break
        found.append((at, kind, mask))
        at += length
    return found
