"""Backup points of a Reflect X set: what ``Container`` promises, for this format."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from formats import partition_table
from formats.blockreader import BlockReader, BytesReader, ConcatReader
from formats.container import (
    Check,
    Container,
    Disk,
    FileAuthentication,
    Partition,
    Point,
    Role,
    UnreadableSource,
)
from formats.errors import DamagedError, ForgedError, FormatError, IncompleteSetError, UnsupportedError
from formats.mrimgx import checks
from formats.mrimgx.backup_set import Chain, Members, check_shape, scan_files
from formats.mrimgx.document import DiskRecord
from formats.mrimgx.image_file import ImageFile
from formats.mrimgx.index import ResolvedIndex
from formats.mrimgx.layout import RESERVED_BLOCK_SIZE
from formats.mrimgx.reader import BlockPlace, BlocksReader
from formats.mrimgx.set_authentication import SetAuthentication


class MrimgxPartition(Partition):
    """A partition at a point of a set."""

    def __init__(self, point: "MrimgxPoint", disk: int, partition: int) -> None:
        self._point = point
        self._at = disk, partition  # positions in the document, not numbers
        self._record = record = point.image.document.disks[disk].partitions[partition]
        self.number = record.number
        self.name = record.name
        self.offset = record.start
        self.size = record.length
        self.file_system = record.file_system
        self.label = record.label
        self.drive_letter = record.drive_letter
        self.volume_guid = record.volume_guid
        self.block_size = record.block_size
        self.block_count = record.block_count
        self.place = BlockPlace.of(point.image.document, self._at)

    @cached_property
    def indexes(self) -> tuple[ResolvedIndex, ResolvedIndex]:
        """The indexes of the reserved sectors and of the blocks at this point.

        The reserved sectors are the newest file's own. Raises FormatError when the point is incomplete.
        """
        chain = self._point.chain
        check_shape(chain, self._at)
        own = [image.index(*self._at) for image in chain.files]
        base = chain.base_of(self._at)
        if base is not chain.base and self._point.members.changed_between(self._at, base, chain.base):
            raise DamagedError(
                f"{self.place.partition}: the index is empty, though files since {base.path.name} have"
                " blocks of it",
                path=chain.base.path,
            )
        blocks = base.index(*self._at).blocks
        wanted = base.document.disks[self._at[0]].partitions[self._at[1]].block_count
        if len(blocks) < wanted:
            raise DamagedError(
                f"{self.place.partition}: the index has {len(blocks)} of {wanted} blocks", path=base.path
            )
        reserved = own[-1].reserved
        if len(reserved) * RESERVED_BLOCK_SIZE < self._record.reserved_length:
            raise DamagedError(
                f"{self.place.partition}: {len(reserved)} blocks can't hold"
                f" {self._record.reserved_length} bytes of reserved sectors",
                path=self._point.path,
            )
        return ResolvedIndex(reserved), ResolvedIndex(blocks, [index.blocks for index in own[1:]])

    def stored_blocks(self) -> int:
        """Count the stored blocks; of an incomplete point, those of its own file."""
        if self._point.problem is None:
            return self.indexes[1].stored_count()
        return self._point.image.index(*self._at).blocks.stored_count()

    def arrays(self) -> Iterator[tuple[ResolvedIndex, BlockPlace, int]]:
        """Yield the index, the place and the block size of the reserved sectors and of the blocks."""
        reserved, blocks = self.indexes
        yield reserved, self.place.reserved(), RESERVED_BLOCK_SIZE
        yield blocks, self.place, self.block_size

    def reader(self) -> BlockReader:
        """Return the partition's bytes: reserved sectors, then blocks; the rest is a hole."""
        return self._reader

    @cached_property
    def _reader(self) -> BlockReader:
        record, store = self._record, self._point.members.store
        reserved, blocks = self.indexes
        first = min(record.data_offset, record.length)
        data_size = min(blocks.count * record.block_size, record.length - first)
        require = self._point.require_key
        pieces: list[tuple[int, BlockReader]] = [
            (first, BlocksReader(store, blocks, self.place, record.block_size, data_size, require))
        ]
        if record.reserved_length:
            place, size = self.place.reserved(), record.reserved_length
            reader = BlocksReader(store, reserved, place, RESERVED_BLOCK_SIZE, size, require)
            pieces.append((record.boot_sector_offset, reader))
        try:
            return ConcatReader.from_placed(record.length, pieces)
        except ValueError:
            raise DamagedError(
                f"{self.place.partition}: its reserved sectors overlap its blocks", path=self._point.path
            ) from None


class MrimgxDisk(Disk):
    """A disk at a point of a set."""

    def __init__(self, point: "MrimgxPoint", at: int) -> None:
        self._point = point
        self._at = at
        self._record = record = point.image.document.disks[at]
        self._size: tuple[SetAuthentication, int] | None = None
        self.number = record.number
        self.name = record.name
        self.scheme = record.scheme
        self.sector_size = record.sector_size
        self.partitions: Sequence[MrimgxPartition] = tuple(
            MrimgxPartition(point, at, number) for number in range(len(record.partitions))
        )

    @property
    def size(self) -> int:
        """The disk's bytes: an incremental may record too few, its base and a GPT know better."""
        known = self._point.members.authentication  # another one once the set is unlocked
        if self._size is None or self._size[0] is not known:
            self._size = known, self._find_size()
        return self._size[1]

    def _find_size(self) -> int:
        sizes = [self._record.size, *(record.size for record in self._earlier_records())]
        sizes += [part.offset + part.size for part in self.partitions]
        if self.scheme == "gpt":
            with suppress(FormatError):  # locked or damaged: reading it will say so
                sizes.append(partition_table.disk_size_from_gpt(self._track0, self.sector_size) or 0)
        return max(sizes)

    def _earlier_records(self) -> Iterator[DiskRecord]:
        """Yield what the full indexes up to the point record of this disk; none where the base is missing.

        An authenticated file believes none but its like: these need not be of its chain.
        """
        number = self._point.file_number
        known = self._point.members.authentication
        for image in self._point.members.with_index:
            document = image.document
            if image in known.forged or (
                self._point.image in known.authenticated and image not in known.authenticated
            ):
                continue
            if document.file_number <= number and not document.delta_index and self._at < len(document.disks):
                yield document.disks[self._at]

    @cached_property
    def _track0(self) -> bytes:
        image = self._point.image
        return image.track0(self._at, self._point.members.cipher(image))

    def reader(self) -> BlockReader:
        """Return the disk's bytes.

        That is track 0, the boot records of logical partitions, the partitions that are in the image, and
        the backup GPT, which is not stored and is made from the primary one.
        """
        return self._reader

    @cached_property
    def _reader(self) -> BlockReader:
        image = self._point.image
        if not self._track0 and self.scheme in ("gpt", "mbr"):
            raise DamagedError(f"{self.name}: its $TRACK0 is missing", path=image.path)
        records = [
            (entry.offset, entry.boot_record)
            for entry in image.extended_partitions(self._at, self._point.members.cipher(image))
        ]
        if self.scheme == "gpt":
            records += partition_table.backup_gpt(self._track0, self.sector_size)
        records.append((0, self._track0))  # the last: it may reach over boot records behind it
        placed: list[tuple[int, BlockReader]] = [(part.offset, part.reader()) for part in self.partitions]
        for offset, data in records:
            if not any(at <= offset < at + reader.size for at, reader in placed):
                end = min([at for at, _ in placed if at >= offset], default=self.size)
                placed.append((offset, BytesReader(data[: max(0, end - offset)])))
        try:
            return ConcatReader.from_placed(self.size, placed)
        except ValueError:
            raise DamagedError(
                f"{self.name}: its parts overlap or lie outside of it", path=image.path
            ) from None


class MrimgxPoint(Point):
    """A moment of a set: one file with an index, and what it needs."""

    def __init__(self, members: Members, image: ImageFile) -> None:
        self.members = members
        self.image = image
        document = image.document
        self.path = image.path
        self.image_id = document.image_id
        self.file_number = document.file_number
        self.increment = document.increment
        self.created = document.created
        self.encrypted = document.encryption is not None
        self.compression = document.compression
        self.stored_bytes = image.stored_bytes

    @cached_property
    def role(self) -> Role:
        """What the point's own file holds."""
        return self.members.role(self.image)

    @cached_property
    def disks(self) -> Sequence[MrimgxDisk]:
        """The disks, as the point's own file records them."""
        return tuple(MrimgxDisk(self, at) for at in range(len(self.image.document.disks)))

    @cached_property
    def _chain(self) -> Chain | FormatError:
        try:
            return self.members.chain(self.image)
        except FormatError as error:
            return error

    @property
    def chain(self) -> Chain:
        """The files that the point is resolved from; raises FormatError when it can't be."""
        if isinstance(self._chain, FormatError):
            raise self._chain
        return self._chain

    @property
    def problem(self) -> FormatError | None:
        """Why the point can't be read, or None."""
        return self._chain if isinstance(self._chain, FormatError) else None

    @property
    def missing_files(self) -> Sequence[int]:
        """The file numbers that the point needs and its folder lacks."""
        return self.problem.missing if isinstance(self.problem, IncompleteSetError) else ()

    def require_key(self) -> None:
        """Raise PasswordError while the point is locked: its own file, or one that it builds upon.

        Raises ForgedError when one of those is forged.
        """
        chain = Chain((self.image,)) if isinstance(self._chain, FormatError) else self._chain
        self.members.require(chain)

    @property
    def unreadable(self) -> Sequence[UnreadableSource]:
        """What of the source could not be read; raises DamagedError."""
        document = self.image.document
        return tuple(
            UnreadableSource(
                BlockPlace.of(document, (entry.disk, entry.partition)).partition, entry.offset, entry.length
            )
            for entry in self.image.own.unreadable
        )

    @property
    def holds_free_space(self) -> bool:
        """Whether the point and all that it builds upon were made of every sector."""
        chain = self.chain
        return all(image.document.has_every_sector for image in (*chain.files, *chain.earlier.values()))

    @property
    def is_made_by_imagefs(self) -> bool:
        """Whether imagefs wrote the point's file and all that it builds upon."""
        chain = self.chain
        return all(image.document.is_by_imagefs for image in (*chain.files, *chain.earlier.values()))

    @property
    def excluded(self) -> Sequence[str]:
        """The patterns of files whose contents were left out as asked; raises DamagedError."""
        return self.image.own.excluded

    @property
    def left_out(self) -> Sequence[str]:
        """Paths of files whose contents were left out; raises DamagedError."""
        return self.image.own.left_out

    def authentication(self) -> Sequence[FileAuthentication]:
        """Return the state of each file that the point uses; none while it is locked or not encrypted."""
        return checks.states(self.members, checks.files_of(self)) if self.members.is_encrypted else ()

    def blocks_to_check(self) -> int:
        """Count the stored blocks at this point."""
        return checks.count_point(self)

    def checks(self) -> Iterator[Check]:
        """Yield checks of the metadata of every file that the point uses, and of each of its blocks."""
        return checks.check_point(self)


class MrimgxSet(Container):
    """A backup set: the members of a folder that share one image id."""

    format = "mrimgx"

    def __init__(self, members: Members, target: ImageFile | None = None) -> None:
        self.members = members
        self.image_id = members.image_id
        self.points: Sequence[MrimgxPoint] = tuple(
            MrimgxPoint(members, image) for image in members.with_index
        )
        self.point = next((point for point in self.points if point.image is target), None)

    @property
    def paths(self) -> Sequence[Path]:
        """The files of the set."""
        return [image.path for image in self.members.files]

    @property
    def is_encrypted(self) -> bool:
        """Whether a password is needed to read data."""
        return self.members.is_encrypted

    def unlock(self, password: str) -> None:
        """Make the data readable; raises PasswordError when the password is wrong, if only for ``point``.

        What is forged is told by who reads it.
        """
        self.members.unlock(password)
        if self.point is not None:
            with suppress(ForgedError):
                self.point.require_key()

    def authentication(self) -> Sequence[FileAuthentication]:
        """Return the state of each file; none while the set is locked or not encrypted."""
        return checks.states(self.members, self.members.files)

    def blocks_to_check(self) -> int:
        """Count the stored blocks of all points, each file's own."""
        return checks.count_set(self.members)

    def checks(self) -> Iterator[Check]:
        """Yield checks of every file's metadata and of every stored block, each once."""
        return checks.check_set(self.members)

    def close(self) -> None:
        """Close the set's files."""
        self.members.close()


def open_file(path: Path) -> MrimgxSet:
    """Open a file's set, with the point that the file names.

    Its members are looked for in the file's folder. Raises FormatError when the file can't be understood.
    """
    image = ImageFile.open(path)
    if image.is_sidecar:
        raise UnsupportedError("the state of an unfinished backup, not an image", path=path)
    members = Members(image.document.image_id, scan_files(path.parent, [image]))
    target = image
    if image.document.split_file:
        target = members.last_of_split(image)
    return MrimgxSet(members, target)


def open_folder(folder: Path) -> tuple[Sequence[MrimgxSet], Mapping[Path, FormatError]]:
    """Open every set of a folder, in order of image ids; tell the files that can't be understood."""
    scan = scan_files(folder)
    ids = sorted({image.document.image_id.upper() for image in scan.images})
    return [MrimgxSet(Members(image_id, scan)) for image_id in ids], scan.unreadable
