"""Security descriptors as Windows judges them: read, written as text, and evaluated against a caller.

Sources: [MS-DTYP] 2.4.6 SECURITY_DESCRIPTOR, 2.4.5 ACL, 2.4.4 ACE, 2.4.2 SID, 2.5.1.1 SDDL, 2.5.3.2 Access
Check Algorithm; "Owner Rights" (S-1-3-4), Microsoft Learn.
"""

import struct
from dataclasses import dataclass

from tests.mounters.winfsp.nt import GENERIC, Access, NtError, Status

SELF_RELATIVE, DACL_PRESENT, DACL_PROTECTED = 0x8000, 0x4, 0x1000
ALLOWED, DENIED = 0, 1
INHERIT_ONLY = 0x8
EVERYONE, OWNER_RIGHTS, SYSTEM = "S-1-1-0", "S-1-3-4", "S-1-5-18"
ADMINISTRATORS, USERS, AUTHENTICATED = "S-1-5-32-544", "S-1-5-32-545", "S-1-5-11"
SHORT = {EVERYONE: "WD", OWNER_RIGHTS: "OW", SYSTEM: "SY", ADMINISTRATORS: "BA", USERS: "BU"}


class BadDescriptorError(Exception):
    """Bytes that are no security descriptor."""


USER = "S-1-5-21-1004336348-1177238915-682003330-1001"  # who mounts, and asks unless somebody else is named


@dataclass(frozen=True)
class Ace:
    kind: int
    flags: int
    mask: int
    sid: str


@dataclass(frozen=True)
class Descriptor:
    control: int
    owner: str
    group: str
    dacl: tuple[Ace, ...] | None  # None: everything is allowed

    def text(self) -> str:
        """Return it as SDDL."""
        said = f"O:{short(self.owner)}G:{short(self.group)}"
        if self.dacl is None:
            return said
        flags = "P" if self.control & DACL_PROTECTED else ""
        aces = "".join(
            f"({'AD'[ace.kind]};{'' if not ace.flags else hex(ace.flags)};0x{ace.mask:x};;;{short(ace.sid)})"
            for ace in self.dacl
        )
        return f"{said}D:{flags}{aces}"


@dataclass(frozen=True)
class Caller:
    """Who asks: a token's user and groups, and the privileges that matter."""

    sids: frozenset[str]
    traverses: bool = True  # SeChangeNotifyPrivilege, which everybody has as a rule


def caller(*sids: str, traverses: bool = True) -> Caller:
    """Return somebody: a user with the groups that every interactive user is in."""
    return Caller(frozenset({*sids, EVERYONE, USERS, AUTHENTICATED}), traverses)


def short(sid: str) -> str:
    return SHORT.get(sid, sid)


def parse(data: bytes) -> Descriptor:
    """Return a self-relative descriptor; BadDescriptorError where Windows would refuse it."""
    try:
        revision, zero, control, owner, group, sacl, dacl = struct.unpack_from("<BBH4I", data)
        if revision != 1 or zero or not control & SELF_RELATIVE or sacl:
            raise BadDescriptorError(f"its head is {data[:20].hex()}")
        aces = None
        if control & DACL_PRESENT and dacl:
            aces = _parse_acl(data, dacl)
        return Descriptor(control, _parse_sid(data, owner), _parse_sid(data, group), aces)
    except struct.error as error:
        raise BadDescriptorError(str(error)) from error


def _parse_sid(data: bytes, at: int) -> str:
    if at < 20:
        raise BadDescriptorError("a SID inside the head")
    revision, count = struct.unpack_from("<BB", data, at)
    if revision != 1 or count > 15:
        raise BadDescriptorError("no SID")
    authority = int.from_bytes(data[at + 2 : at + 8], "big")
    return "-".join(map(str, ("S-1", authority, *struct.unpack_from(f"<{count}I", data, at + 8))))


def _parse_acl(data: bytes, at: int) -> tuple[Ace, ...]:
    revision, _, size, count, _ = struct.unpack_from("<BBHHH", data, at)
    if revision not in (2, 4) or at + size > len(data):
        raise BadDescriptorError("no ACL")
    end, aces = at + size, []
    at += 8
    for _ in range(count):
        kind, flags, length, mask = struct.unpack_from("<BBHI", data, at)
        if length < 16 or length % 4 or at + length > end or kind not in (ALLOWED, DENIED):
            raise BadDescriptorError("no ACE")
        aces.append(Ace(kind, flags, mask, _parse_sid(data, at + 8)))
        at += length
    return tuple(aces)


def check_access(descriptor: Descriptor, who: Caller, wanted: int) -> int:
    """Return what is granted; ACCESS_DENIED where something that is wanted is not."""
    for generic, rights in GENERIC.items():
        if wanted & generic:
            wanted = wanted & ~generic | rights
    maximum = bool(wanted & Access.MAXIMUM_ALLOWED)
    wanted &= ~Access.MAXIMUM_ALLOWED
    if descriptor.dacl is None:
        granted: int = wanted | (0x1F01FF if maximum else 0)
    else:
        granted = _allowed(descriptor, who)
        if wanted & ~granted:
            raise NtError(Status.ACCESS_DENIED, "access check")
        granted = granted if maximum else wanted
    if not granted:
        raise NtError(Status.ACCESS_DENIED, "access check")
    return granted


def _allowed(descriptor: Descriptor, who: Caller) -> int:
    assert descriptor.dacl is not None
    owns = descriptor.owner in who.sids
    sids = who.sids | ({OWNER_RIGHTS} if owns else set())
    aces = [ace for ace in descriptor.dacl if not ace.flags & INHERIT_ONLY]
    granted: int = 0
    denied = 0
    if owns and not any(ace.sid == OWNER_RIGHTS for ace in aces):
        granted = Access.READ_CONTROL | Access.WRITE_DAC
    for ace in aces:
        if ace.sid in sids:
            if ace.kind == DENIED:
                denied |= ace.mask & ~granted
            else:
                granted |= ace.mask & ~denied
    return granted
