"""The directories of an NTFS volume: their listings, and names found in them as Windows finds them.

A name is found exactly, else without regard to case by the volume's own $UpCase; in a directory that is
case-sensitive it is found exactly or not at all. That a directory is, bit 0 at 40 of its
$STANDARD_INFORMATION tells (where NTFS 1 had a version number): seen by libfsntfs
(https://github.com/libyal/libfsntfs, documentation) and dfir_ntfs (https://github.com/msuhanov/dfir_ntfs).
"""

import logging
import threading
from collections.abc import Callable

import numpy as np

from formats.errors import FormatError
from imagefs.filesystems.base import ENTRIES_KEPT, LeastRecentlyUsed
from imagefs.filesystems.ntfs.descent import Descents
from imagefs.filesystems.ntfs.index import read_index
from imagefs.filesystems.ntfs.layout import ROOT, AttributeType
from imagefs.filesystems.ntfs.listing import Listing, ListingBuilder
from imagefs.filesystems.ntfs.mft import MasterFileTable, find
from imagefs.filesystems.ntfs.rebuild import NamesOfRecords
from imagefs.filesystems.upcase import UpCase
from mounters.tree import NodeType

log = logging.getLogger(__name__)

_UPCASE = 10  # file record of $UpCase
_UPCASE_SIZE = 1 << 17  # bytes
_CASE_SENSITIVE = 1  # in $STANDARD_INFORMATION
_EXTRA_FLAGS = 40  # where they are
_SENSITIVE_KEPT = 10_000


class Directories:
    """Listings and searches. Safe from several threads.

    ``recorded_type`` tells what a node is by its file record, where its name's flags don't.
    """

    def __init__(
        self,
        mft: MasterFileTable,
        cluster_size: int,
        volume_size: int,
        recorded_type: Callable[[int, NodeType], NodeType],
    ) -> None:
        self._mft = mft
        self._cluster_size = cluster_size
        self._volume_size = volume_size
        self._recorded_type = recorded_type
        self._listings: LeastRecentlyUsed[int, Listing] = LeastRecentlyUsed(ENTRIES_KEPT, len)
        self._descents = Descents(mft, cluster_size)
        self._records = NamesOfRecords(mft)
        self._sensitive: LeastRecentlyUsed[int, bool] = LeastRecentlyUsed(_SENSITIVE_KEPT)
        self._upcase: UpCase | None = None
        self._upcase_read = False
        self._lock = threading.Lock()

    def listing(self, inode: int) -> Listing:
        """Return all names of a directory; FormatError where they can't be had whole.

        Where its index is damaged they are taken from the file records.
        """
        known = self._listings.get(inode)
        if known is None:
            builder = ListingBuilder(inode, self._recorded_type)
            try:
                for names in read_index(self._mft, inode, self._cluster_size, self._volume_size):
                    builder.add(names)
                known = builder.listing()
            except FormatError as error:
                known = self._rebuilt(inode, builder.listing(), error)
            self._listings.put(inode, known)
        return known

    def _rebuilt(self, inode: int, part: Listing, problem: FormatError) -> Listing:
        """Return a directory as the file records have it, which must have what of its index was read.

        Raises ``problem`` where that can't be.
        """
        builder = ListingBuilder(inode, self._recorded_type)
        try:
            builder.add(self._records.names(inode))
        except FormatError as error:
            log.info("directory %d can't be listed from $MFT either: %s", inode, error)
            raise problem from None
        listing = builder.listing()
        if not listing.includes(part):
            raise problem
        log.warning("directory %d is listed from $MFT: %s", inode, problem)
        return listing

    def reference(self, inode: int, name: str) -> int | None:
        """Return what a name in a directory stands for, None when it is not there.

        In a large directory the nodes of its index on the way to the name are read alone. Where one of
        them is damaged, the whole listing is what counts.
        """
        upcase = self.upcase()
        ignore_case = upcase is not None and not self.is_case_sensitive(inode)
        listing = self._listings.get(inode)
        if listing is None and upcase is not None:
            try:
                if self._descents.pays(inode):
                    found = self._descents.find(inode, name, upcase, ignore_case=ignore_case)
                    return None if found is None or (inode == ROOT and found[0] == ".") else found[1]
            except FormatError as error:
                log.info("directory %d is read whole: %s", inode, error)
        return (listing or self.listing(inode)).reference(name, upcase if ignore_case else None)

    def stored(self, inode: int, name: str) -> tuple[str, int] | None:
        """Return a name as it is stored and its reference, without making a listing, nor asking for types.

        It is found as ``reference`` finds it. Raises FormatError where the index is damaged.
        """
        upcase = self.upcase()
        ignore_case = upcase is not None and not self.is_case_sensitive(inode)
        if upcase is not None:
            return self._descents.find(inode, name, upcase, ignore_case=ignore_case)
        for names in read_index(self._mft, inode, self._cluster_size, self._volume_size):
            if name in names.names:
                return name, int(names.references[list(names.names).index(name)])
        return None

    def is_case_sensitive(self, inode: int) -> bool:
        """Tell whether names in a directory differ by case (Windows 10: fsutil file setCaseSensitiveInfo)."""
        known = self._sensitive.get(inode)
        if known is None:
            information = find(self._mft.record(inode).attributes, AttributeType.STANDARD_INFORMATION)
            value = (information[0].value or b"") if information else b""
            known = len(value) > _EXTRA_FLAGS and bool(value[_EXTRA_FLAGS] & _CASE_SENSITIVE)
            self._sensitive.put(inode, known)
        return known

    def clear(self) -> None:
        """Forget what is cached."""
        self._listings.clear()
        self._descents.clear()
        self._sensitive.clear()

    def upcase(self) -> UpCase | None:
        """Return the volume's upper case; None where it is damaged: names are exact then."""
        with self._lock:
            if not self._upcase_read:
                try:
                    self._upcase = _read_upcase(self._mft)
                except FormatError as error:
                    log.warning("$UpCase can't be read, so names are compared exactly: %s", error)
                else:
                    if self._upcase is None:
                        log.warning("$UpCase can't be a table of letters, so names are compared exactly")
                self._upcase_read = True
            return self._upcase


def _read_upcase(mft: MasterFileTable) -> UpCase | None:
    data = find(mft.attributes(mft.record(_UPCASE)), AttributeType.DATA)
    if not data or data[0].size != _UPCASE_SIZE:
        return None
    table = mft.small_value(data, _UPCASE_SIZE, "$UpCase")
    upcase = UpCase(np.frombuffer(table, "<u2").astype("<u4").tobytes().decode("utf-32-le", "surrogatepass"))
    return upcase if upcase.is_sensible() else None
