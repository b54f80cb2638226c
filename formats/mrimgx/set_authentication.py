"""Which files of a set are what was written by someone with its password.

Specified, with what it protects from and what not, in FORMAT.md, "Authentication".
"""

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from formats.errors import ForgedError, FormatError
from formats.mrimgx import layout
from formats.mrimgx.authentication import FILE_TAG_SIZE, TAG_SIZE, AuthenticationKeys, FileTag
from formats.mrimgx.image_file import ImageFile
from formats.mrimgx.index import ElementTable
from formats.mrimgx.layout import METADATA_BLOCK_HEADER, MetadataBlock
from formats.mrimgx.own_blocks import AuthenticationRecord
from formats.mrimgx.tag_table import PAGE, ArrayKey, BlockTags, TagCounter, TagTable

_PIECE = 4 * 1024 * 1024
_ROWS = 512 * PAGE  # elements passed through at a time: 2 MB


@dataclass(frozen=True, slots=True)
class AuthenticatedFile:
    """A file whose tag is right."""

    record: AuthenticationRecord
    tag: bytes
    tables: Mapping[ArrayKey, Sequence[TagTable]]  # none in a data-only file of a split
    stored: Mapping[int, int]  # bytes of stored blocks with tags here, by file number


@dataclass(frozen=True)
class SetAuthentication:
    """What is known of the files of a set; none of it before its password is."""

    authenticated: Mapping[ImageFile, AuthenticatedFile] = field(default_factory=dict)
    forged: Mapping[ImageFile, ForgedError] = field(default_factory=dict)
    tags: Mapping[ImageFile, BlockTags] = field(default_factory=dict)

    def uncovered(self, image: ImageFile) -> int:
        """Return how many bytes of an authenticated file's data area are no block's: 0, or it is odd."""
        found = self.authenticated.get(image)
        number = image.document.file_number
        for other in self.authenticated.values():
            if found is not None and other.tables and number in other.record.files:
                return found.record.data_length - other.stored.get(number, 0)
        return 0


def authenticate_set(
    files: Sequence[ImageFile], keys: Mapping[ImageFile, AuthenticationKeys]
) -> SetAuthentication:
    """Authenticate the files that say they can be, and hold the set against what the newest knows of it.

    ``files`` are all of the set in ascending order of their numbers, ``keys`` those of the files that the
    password fits. Reads everything behind their data once.
    """
    authenticated: dict[ImageFile, AuthenticatedFile] = {}
    forged: dict[ImageFile, ForgedError] = {}
    for image in files:
        try:
            if image in keys:
                found = authenticate_file(image, keys[image])
                if found is not None:
                    authenticated[image] = found
            elif image.document.encryption is None and image.own_marks():
                raise ForgedError("it has authentication, but is not encrypted", path=image.path)
        except ForgedError as error:
            forged[image] = error
        except FormatError as error:
            forged[image] = ForgedError(error.what, path=image.path)
    with_index = [image for image in authenticated if not image.document.split_file]
    if with_index:
        witness = with_index[-1]
        for image in files:
            reason = _contradiction(image, authenticated.get(image), witness, authenticated[witness])
            if image is not witness and reason:
                forged.setdefault(image, ForgedError(reason, path=image.path))
    for image in forged:
        authenticated.pop(image, None)
    tags = {image: BlockTags(keys[image], _tables(image, authenticated)) for image in authenticated}
    return SetAuthentication(authenticated, forged, tags)


def _contradiction(
    image: ImageFile, found: AuthenticatedFile | None, witness: ImageFile, word: AuthenticatedFile
) -> str:
    """Return what the newest authenticated file, ``witness``, has against another; "" for nothing."""
    name, number = witness.path.name, image.document.file_number
    listed = word.record.members
    absorbed = sorted((image.document.merged_files - {number}) & (listed.keys() | word.record.files))
    if absorbed:
        return f"it claims to stand for file number {absorbed[0]}, of which {name} knows otherwise"
    if number in listed:
        if found is None:
            return f"{name} knows an authenticated file of its number, which this one is not"
        return (
            ""
            if hmac.compare_digest(found.tag, listed[number])
            else f"{name} knows another file of its number"
        )
    if number in word.record.files:
        return f"it has a number of the files that were written with {name}, which does not know it"
    if number > witness.document.file_number:
        return ""
    if found is not None:
        return f"{name} is newer and does not know it"
    if not image.document.split_file and number not in witness.document.history:
        return f"{name} is newer and does not have it in its history"
    return ""


def _tables(
    image: ImageFile, authenticated: Mapping[ImageFile, AuthenticatedFile]
) -> Mapping[ArrayKey, Sequence[TagTable]] | None:
    """Return where the tags of a file's blocks are: in itself, or in the last file of its split."""
    if not image.document.split_file:
        return authenticated[image].tables
    number = image.document.file_number
    for other, found in authenticated.items():
        if not other.document.split_file and number in found.record.files:
            return found.tables
    return None


def authenticate_file(image: ImageFile, keys: AuthenticationKeys) -> AuthenticatedFile | None:
    """Return what an encrypted file's own blocks prove of it, None where it has none of them.

    Raises ForgedError when it is not as it was written, FormatError when it can't be read.
    """
    if not image.own_marks():
        return None
    record = image.own.authentication  # raises where the block is damaged
    if record is None:
        raise ForgedError("the $IMAGEFS block with its authentication is missing", path=image.path)
    end = image.root[-1]
    names = [block.name for block in image.root]
    if end.name != layout.OWN_AUTHENTICATION or names.count(end.name) != 1:
        raise ForgedError("its $IFSAUTH is missing, or not the last block", path=image.path)
    document = image.document
    if record.data_length > image.data_end or document.file_number not in record.files:
        raise ForgedError("what its $IMAGEFS says of it can't be", path=image.path)
    tag = keys.file_tag(document.image_id_bytes, document.file_number, record.data_length)
    run = _Pass(image, tag, record)
    run.to(end.start)
    footer = image.stored_bytes - layout.FOOTER_SIZE
    tag.update(image.read(footer, layout.FOOTER_SIZE))
    digest = tag.digest()
    if not hmac.compare_digest(image.read(end.start, footer - end.start), _authentication_block(digest)):
        raise ForgedError("its tag does not fit: it is not as it was written", path=image.path)
    run.check()
    return AuthenticatedFile(record, digest, run.tables, run.stored)


def _authentication_block(tag: bytes) -> bytes:
    """Return the one spelling of an $IFSAUTH block."""
    header: bytes = METADATA_BLOCK_HEADER.build(
        {
            "block_name": layout.OWN_AUTHENTICATION.encode().ljust(8),
            "block_length": FILE_TAG_SIZE,
            "hash": hashlib.md5(tag, usedforsecurity=False).digest(),
            "flags": layout.FLAG_LAST,
        }
    )
    return header + tag


class _Pass:
    """One pass through what a file's tag covers, which counts the elements that have tags on its way.

    Nothing that is counted is believed before the tag has turned out right.
    """

    def __init__(self, image: ImageFile, tag: FileTag, record: AuthenticationRecord) -> None:
        self._image = image
        self._tag = tag
        self._record = record
        self._at = record.data_length
        self.tables: dict[ArrayKey, list[TagTable]] = {}
        self.stored: dict[int, int] = {}
        self._faults: list[str] = []

    def to(self, end: int) -> None:
        """Pass everything up to ``end``, the root list's last block."""
        document = self._image.document
        for at, part in document.partitions():
            blocks = self._image.lists[at[0]].partitions[at[1]]
            own_tags = [block for block in blocks if block.name == layout.OWN_TAGS]
            if len(own_tags) != 1 or blocks[-2] is not own_tags[0]:
                raise ForgedError(
                    f"{part.name}: its $IFSTAGS is missing, or not before $INDEX", path=self._image.path
                )
            numbers = document.disks[at[0]].number, part.number
            self._partition(numbers, own_tags[0], at)
        self._bytes(end)

    def check(self) -> None:
        """Raise ForgedError where the tables contradict each other, in a file with a right tag."""
        if self._faults:
            raise ForgedError(self._faults[0], path=self._image.path)

    def _bytes(self, end: int) -> None:
        for offset in range(self._at, end, _PIECE):
            self._tag.update(self._image.read(offset, min(_PIECE, end - offset)))
        self._at = end

    def _partition(self, numbers: tuple[int, int], tags: MetadataBlock, at: tuple[int, int]) -> None:
        index = self._image.index(*at)
        offset = tags.offset
        for table, is_reserved in ((index.reserved, True), (index.blocks, False)):
            self._bytes(table.offset)
            counter, firsts = TagCounter(self._record.files), []
            for rows in self._rows(table):
                counter.add(rows)
                if table.is_delta:
                    firsts.append(rows["block"][::PAGE].copy())
            first_blocks = np.concatenate([np.empty(0, np.uint32), *firsts]) if table.is_delta else None
            found = TagTable(
                table, self._image.read, offset, self._record.files, counter.before(), first_blocks
            )
            self.tables.setdefault((*numbers, is_reserved), []).append(found)
            offset += counter.count * TAG_SIZE
            for number, size in counter.stored.items():
                self.stored[number] = self.stored.get(number, 0) + size
            reach = counter.reach.get(self._image.document.file_number, 0)
            if not counter.is_sound or reach > self._record.data_length:
                self._faults.append("its $INDEX names blocks outside of its data")
        if offset != tags.end:
            count = (offset - tags.offset) // TAG_SIZE
            self._faults.append(f"its $IFSTAGS has {tags.length} bytes for {count} stored blocks")

    def _rows(self, table: ElementTable) -> Iterator[np.ndarray[tuple[int], np.dtype[np.void]]]:
        for first in range(0, len(table), _ROWS):
            rows = table.rows(first, first + _ROWS)
            self._tag.update(rows.view(np.uint8).data)
            self._at += rows.nbytes
            yield rows
