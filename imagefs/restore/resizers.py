"""The tools that resize file systems: what they are run with, and what they say.

FAT keeps its size. fatresize 1.1.0, with libparted's code for FAT, ends in a failed assertion on any file or
device that is a volume by itself; on a disk image around a volume it refuses small clusters, misses the size
asked for by hundreds of sectors, either way, and replaces boot code, label and cluster size.
exFAT has no tool.
"""

import os
import re
import shutil
import struct
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from formats.blockreader import BlockReader
from formats.errors import DamagedError, FormatError
from imagefs.errors import RefusedError
from imagefs.filesystems.detect import recognise, signatures
from imagefs.filesystems.ntfs import NtfsFileSystem
from imagefs.filesystems.ntfs.layout import VOLUME, AttributeType, parse_boot
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from mounters.tree import NodeType

_NTFS_LOG = 2  # file record of $LogFile
_NO_CLIENT = 0xFFFF  # of the journal's list of clients
_LOG_CLEAN = 0x0002
_NTFS_DIRTY = 0x0001
_EXT_ERRORS = 0x0002  # s_state
_EXT_RECOVER = 0x0004  # incompatible feature: the journal holds what is not in its place yet
_EXT_64BIT = 0x0080
_EXT_UNFIT = "it has errors and can't be resized"
_MAX_BLOCKS = 1 << 32

_NTFS_FULL = "Volume is full"  # which is no fault of it
_FINDINGS = {  # exit codes of ntfs-3g.probe(8) that a resizing must not go over
    14: "Windows is hibernated in it, or was shut down for a fast start",
    15: "it was not cleanly unmounted: its journal holds what is not in its place yet",
}


def find_tool(tool: str, package: str) -> str:
    """Return a tool's path, also where a plain user's PATH does not lead; RefusedError names its package."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    found = shutil.which(tool, path=search)
    if found is None:
        raise RefusedError(f"{tool} is not installed", hint=f"install the package {package}")
    return found


def run_tool(tool: str, package: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a tool to its end; returns its exit code and what it said, in plain English."""
    command = [find_tool(tool, package), *map(str, arguments)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.returncode, done.stdout.decode(errors="replace")


class Resizer(ABC):
    """How volumes of one family of file systems are checked and resized; on files and block devices."""

    name: ClassVar[str]  # for messages
    tools: ClassVar[tuple[tuple[str, str], ...]]  # each with its Debian package

    def require(self) -> None:
        """Raise RefusedError where one of the tools is missing."""
        for tool, package in self.tools:
            find_tool(tool, package)

    @abstractmethod
    def obstacle(self, reader: BlockReader) -> str:
        """Return why a volume must not be resized, as far as a look at it tells; "" where nothing does."""

    @abstractmethod
    def largest(self, reader: BlockReader) -> int:
        """Return how many bytes the volume can grow to."""

    @abstractmethod
    def inspect(self, path: Path) -> None:
        """Check a volume that may be read-only; RefusedError for any fault, as far as it can be told so."""

    @abstractmethod
    def prepare(self, path: Path) -> None:
        """Check a volume that is going to be resized, its journal played back; RefusedError for any fault."""

    @abstractmethod
    def smallest(self, path: Path) -> int:
        """Return the least bytes the volume can be shrunk to. It may be read-only. Raises RefusedError."""

    @abstractmethod
    def resize(self, path: Path, size: int) -> None:
        """Give the volume ``size`` bytes; where it grows the file has them already. Raises RefusedError."""

    @abstractmethod
    def check(self, path: Path) -> None:
        """Check a volume that was resized, on a file of its new size. Raises RefusedError."""

    def _refuse(self, what: str, said: str) -> RefusedError:
        """Return the error for what a tool refused, with its own words."""
        return RefusedError(f"{self.name}: {what}: {_last_words(said)}")


def _last_words(said: str) -> str:
    """Return the line of a tool's output that says why, or the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"(ERROR|Error|.*: (Bad|Invalid|No) )", line)]
    return (telling or lines or ["it said nothing"])[-1][:300]


class NtfsResizer(Resizer):
    """NTFS, by ntfsresize; ntfs-3g.probe tells of what ntfsresize would go over: journals and hibernation."""

    name = "NTFS"
    tools = (("ntfsresize", "ntfs-3g"), ("ntfs-3g.probe", "ntfs-3g"), ("ntfsfix", "ntfs-3g"))

    def obstacle(self, reader: BlockReader) -> str:
        """Return why it must not be resized: dirty, its journal in use, Windows asleep in it."""
        try:
            mft = MasterFileTable(reader, parse_boot(reader.read_at(0, 512)))
            if _ntfs_flags(mft) & _NTFS_DIRTY:
                return "Windows has it down for a check (chkdsk)"
            if not _has_clean_log(mft):
                return _FINDINGS[15]
            return _FINDINGS[14] if _is_hibernated(reader) else ""
        except FormatError as error:
            return f"it can't be read ({error.what})"

    def largest(self, reader: BlockReader) -> int:
        """Return the bytes of 2^32 - 1 clusters."""
        return parse_boot(reader.read_at(0, 512)).cluster_size * (_MAX_BLOCKS - 1)

    def inspect(self, path: Path) -> None:
        """Check it: hibernated, dirty and inconsistent volumes are refused."""
        self._probe(path, "--readonly")
        self._check_consistency(path)

    def prepare(self, path: Path) -> None:
        """Check it: unclean ones are refused too, which takes a volume that can be written."""
        self._probe(path, "--readwrite")
        self._check_consistency(path)

    def _check_consistency(self, path: Path) -> None:
        code, said = self._ntfsresize("--info", path)
        if code and _NTFS_FULL not in said:
            raise self._refuse("ntfsresize finds it unfit to be resized", said)

    def _probe(self, path: Path, how: str) -> None:
        code, said = run_tool("ntfs-3g.probe", "ntfs-3g", how, path)
        if code in _FINDINGS:
            raise RefusedError(
                f"NTFS: {_FINDINGS[code]}; it can't be resized",
                hint="restore it with its own size, start Windows and let it resize the volume",
            )
        if code:
            raise self._refuse(f"ntfs-3g.probe can't open it (exit code {code})", said)

    def _ntfsresize(self, *arguments: str | Path) -> tuple[int, str]:
        return run_tool("ntfsresize", "ntfs-3g", "--no-progress-bar", *arguments)

    def smallest(self, path: Path) -> int:
        """Return what ntfsresize finds, rounded up to clusters, with the last sector's boot sector."""
        code, said = self._ntfsresize("--info", path)
        found = re.search(r"You might resize at (\d+) bytes", said)
        cluster = re.search(r"Cluster size\s*: (\d+) bytes", said)
        if found and cluster and code == 0:
            unit = int(cluster[1])
            return -(-int(found[1]) // unit) * unit + unit
        size = re.search(r"Current device size: (\d+) bytes", said)
        if size and _NTFS_FULL in said:
            return int(size[1])
        raise self._refuse("ntfsresize can't tell how small it can be", said)

    def resize(self, path: Path, size: int) -> None:
        """Resize it; a run that writes nothing comes first."""
        arguments = ("--force", "--size", str(size), path)
        for options in (("--no-action",), ()):
            code, said = self._ntfsresize(*options, *arguments)
            if code or "successfully" not in said.lower():
                raise self._refuse(f"ntfsresize can't make it {size} bytes", said)

    def check(self, path: Path) -> None:
        """Check it; ntfsresize leaves the mark that has Windows check it at its next start."""
        code, said = run_tool("ntfsfix", "ntfs-3g", "--no-action", path)
        if code or "BAD" in said:
            raise self._refuse("it is not sound after the resizing", said)
        code, said = self._ntfsresize("--info", "--force", path)
        if code and _NTFS_FULL not in said:
            raise self._refuse("it is not sound after the resizing", said)


def _ntfs_flags(mft: MasterFileTable) -> int:
    found = find(mft.attributes(mft.record(VOLUME)), AttributeType.VOLUME_INFORMATION)
    value = found[0].value if found else None
    if value is None or len(value) < 12:
        raise DamagedError("NTFS: $Volume does not say whether it is dirty")
    return int(struct.unpack_from("<H", value, 10)[0])


def _has_clean_log(mft: MasterFileTable) -> bool:
    """Tell whether nothing waits in the journal: it is empty, or its newest restart page says so.

    Structures: https://flatcap.github.io/linux-ntfs/ntfs/files/logfile.html.
    """
    found = find(mft.attributes(mft.record(_NTFS_LOG)), AttributeType.DATA)
    if not found:
        raise DamagedError("NTFS: $LogFile has no data")
    log = mft.value(found, "$LogFile")
    newest = -1
    is_clean = True
    for at in (0, 4096):
        if log.size < at + 512:
            break
        page = log.read_at(at, 512)
        if page[:4] not in (b"RSTR", b"CHKD"):
            if page[:4] != b"\xff\xff\xff\xff":
                raise DamagedError(f"NTFS: $LogFile has no restart page at {at}")
            continue
        (area,) = struct.unpack_from("<H", page, 24)
        if area > 512 - 18:
            raise DamagedError(f"NTFS: $LogFile has its restart area at {area}")
        number, _, _, in_use, flags = struct.unpack_from("<QHHHH", page, area)
        if number > newest:
            newest, is_clean = number, in_use == _NO_CLIENT or bool(flags & _LOG_CLEAN)
    return is_clean


def _is_hibernated(reader: BlockReader) -> bool:
    """Tell whether Windows sleeps in this volume, as its hiberfil.sys begins then."""
    with NtfsFileSystem(reader) as volume:
        try:
            inode = volume.lookup(volume.root, "hiberfil.sys")
        except FileNotFoundError:
            return False
        if volume.attributes(inode).type is not NodeType.FILE:
            return False
        content = volume.open(inode)
        return content.read_at(0, min(4, content.size)).lower() == b"hibr"


class ExtResizer(Resizer):
    """ext2, ext3 and ext4, by resize2fs and e2fsck."""

    name = "ext"
    tools = (("resize2fs", "e2fsprogs"), ("e2fsck", "e2fsprogs"))

    def obstacle(self, reader: BlockReader) -> str:
        """Return why it must not be resized: the kernel found errors in it."""
        (state,) = struct.unpack_from("<H", reader.read_at(1024, 1024), 0x3A)
        return "the kernel found errors in it (e2fsck)" if state & _EXT_ERRORS else ""

    def largest(self, reader: BlockReader) -> int:
        """Return the bytes that its block numbers reach."""
        raw = reader.read_at(1024, 1024)
        block_size = 1024 << struct.unpack_from("<I", raw, 24)[0]
        wide = struct.unpack_from("<I", raw, 0x60)[0] & _EXT_64BIT
        return int(block_size * (_MAX_BLOCKS - 1)) if not wide else 1 << 60

    def inspect(self, path: Path) -> None:
        """Check it; what waits in a journal can't be judged before it is played back."""
        if not _needs_recovery(path):
            self.check(path, _EXT_UNFIT)

    def prepare(self, path: Path) -> None:
        """Play back its journal where it waits for that, as the kernel would; refuse any other fault."""
        if _needs_recovery(path):
            # What a mount would do. Files that were open while unlinked are let go of by the same run.
            code, said = run_tool("e2fsck", "e2fsprogs", "-f", "-p", path)
            if code not in (0, 1):
                raise self._refuse("its journal can't be played back", said)
        self.check(path, _EXT_UNFIT)
        code, said = run_tool("e2fsck", "e2fsprogs", "-f", "-p", path)  # resize2fs wants it just checked
        if code:
            raise self._refuse(_EXT_UNFIT, said)

    def smallest(self, path: Path) -> int:
        """Return what resize2fs estimates, in bytes of whole blocks."""
        code, said = run_tool("resize2fs", "e2fsprogs", "-P", path)
        found = re.search(r"minimum size of the filesystem: (\d+)", said)
        if code or not found:
            raise self._refuse("resize2fs can't tell how small it can be", said)
        return int(found[1]) * (1024 << int(struct.unpack_from("<I", _superblock(path), 24)[0]))

    def resize(self, path: Path, size: int) -> None:
        """Resize it to the whole blocks of ``size``."""
        block_size = 1024 << struct.unpack_from("<I", _superblock(path), 24)[0]
        blocks = size // block_size
        code, said = run_tool("resize2fs", "e2fsprogs", path, str(blocks))
        if code or _block_count(path) != blocks:
            raise self._refuse(f"resize2fs can't make it {size} bytes", said)

    def check(self, path: Path, what: str = "it is not sound after the resizing") -> None:
        """Check it, changing nothing; ``what`` begins the error."""
        code, said = run_tool("e2fsck", "e2fsprogs", "-f", "-n", path)
        if code:
            raise self._refuse(what, said)


def _superblock(path: Path) -> bytes:
    with path.open("rb", buffering=0) as stream:
        stream.seek(1024)
        return stream.read(1024)


def _needs_recovery(path: Path) -> bool:
    return bool(struct.unpack_from("<I", _superblock(path), 0x60)[0] & _EXT_RECOVER)


def _block_count(path: Path) -> int:
    raw = _superblock(path)
    wide = struct.unpack_from("<I", raw, 0x60)[0] & _EXT_64BIT
    high = struct.unpack_from("<I", raw, 0x150)[0] if wide else 0
    return int(struct.unpack_from("<I", raw, 4)[0] | high << 32)


_RESIZERS: dict[str, Resizer] = {"NTFS": NtfsResizer(), "ext": ExtResizer()}


def resizer_of(reader: BlockReader) -> Resizer | None:
    """Return how a volume is resized, by its content; None where it keeps its size.

    One that bears the signs of several file systems keeps it: there is no telling which of them counts.
    """
    family = recognise(reader)
    if family is None or len(signatures(reader)) > 1:
        return None
    return _RESIZERS.get(family)


def resizer_by_name(file_system: str) -> Resizer | None:
    """Return how volumes of a recorded name ("NTFS", "ext", "EXT4", …) are resized; None: they aren't."""
    return _RESIZERS.get("ext" if re.fullmatch(r"(?i)ext[234]?", file_system) else file_system)
