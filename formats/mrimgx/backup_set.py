"""The files of one backup set: which belong to it, and which of them a backup point needs.

Identity decides: the image id and the numbers in the documents; file names mean nothing.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from formats.blockreader import BlockCache
from formats.container import FileAuthentication, FileState, Role
from formats.errors import (
    DamagedError,
    DuplicateMemberError,
    ForgedError,
    FormatError,
    IncompleteSetError,
    NotAnImageError,
    PasswordError,
    ReadError,
)
from formats.mrimgx.authentication import AuthenticationKeys
from formats.mrimgx.cipher import BlockCipher, derive_key
from formats.mrimgx.image_file import ImageFile, probe
from formats.mrimgx.reader import BlockStore
from formats.mrimgx.set_authentication import SetAuthentication, authenticate_set

EXTENSIONS = {".mrimgx", ".mrbakx", ".mrimg", ".mrbak"}
DEFAULT_CACHE_SIZE = 64 * 1024 * 1024  # bytes of decoded blocks that a set keeps
Place = tuple[int, int]  # a disk and a partition, by their positions in the document


@dataclass(frozen=True)
class FolderScan:
    """The image files of a folder, and those that look like one but can't be understood."""

    folder: Path
    images: tuple[ImageFile, ...]
    unreadable: Mapping[Path, FormatError] = field(default_factory=dict)


def scan_files(folder: Path, known: Iterable[ImageFile] = ()) -> FolderScan:
    """Open every Reflect X file of a folder; headers only.

    What is called an image and is none is unreadable, so that a file cut short does not go unnoticed.

    ``known`` are opened already and are not opened again. A file of two names (links) is one. Raises
    ReadError when the folder can't be read.
    """
    opened = {image.path: image for image in known}
    met = {image.identity[:2] for image in opened.values()}
    unreadable: dict[Path, FormatError] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ReadError(error.strerror or str(error), path=folder) from error
    for path in paths:
        if path in opened:
            continue
        try:
            if probe(path):
                image = ImageFile.open(path)
                if not image.is_sidecar and (image.identity[:2] not in met or not image.identity[1]):
                    opened[path] = image
                    met.add(image.identity[:2])
            elif path.suffix.lower() in EXTENSIONS:
                unreadable[path] = DamagedError("does not end as an image file does; cut off?", path=path)
        except NotAnImageError:
            continue
        except FormatError as error:
            unreadable[path] = error
    return FolderScan(folder, tuple(opened.values()), unreadable)


@dataclass(frozen=True)
class Chain:
    """The files that a point is resolved from: the base, then the deltas up to the point's own file."""

    files: tuple[ImageFile, ...]
    earlier: Mapping[Place, ImageFile] = field(default_factory=dict)
    holders: frozenset[ImageFile] = frozenset()  # who stands for the numbers that must be there

    def base_of(self, place: Place) -> ImageFile:
        """Return the file whose full index a partition is resolved from.

        A partition that is imaged whole once (unformatted, MSR) has an empty index afterwards, also where the
        index is full: then it is an earlier file than ``base``.
        """
        return self.earlier.get(place, self.base)

    @property
    def base(self) -> ImageFile:
        """The newest file with a full index."""
        return self.files[0]

    @property
    def target(self) -> ImageFile:
        """The point's own file."""
        return self.files[-1]


class Members:
    """The members of one set: who stands for which file number, and what each point needs.

    Safe from several threads once made.
    """

    def __init__(self, image_id: str, scan: FolderScan, *, cache_size: int = DEFAULT_CACHE_SIZE) -> None:
        self.image_id = image_id
        self.folder = scan.folder
        self._unreadable = scan.unreadable
        mine = bytes.fromhex(image_id)
        files = [image for image in scan.images if image.document.image_id_bytes == mine]
        self.files = tuple(sorted(files, key=lambda image: (image.document.file_number, image.path)))
        self._claims: dict[int, list[ImageFile]] = {}
        for image in self.files:
            for number in image.numbers:
                self._claims.setdefault(number, []).append(image)
        self.store = BlockStore(self.holder, BlockCache(cache_size))
        self.check_store = BlockStore(self.holder, BlockCache(0))  # decodes the blocks of forged files too
        self.authentication = SetAuthentication()
        self._lock = threading.Lock()
        self._named: dict[ImageFile, frozenset[int]] = {}
        locked = PasswordError(f"set {image_id} is encrypted", hint="give its password")
        self.store.ciphers = {image: locked for image in self.files if image.document.encryption}
        self.check_store.ciphers = self.store.ciphers
        self._unlocked: frozenset[ImageFile] = frozenset()

    @cached_property
    def with_index(self) -> Sequence[ImageFile]:
        """The files that are points, in ascending order of their numbers."""
        return tuple(image for image in self.files if not image.document.split_file)

    @cached_property
    def spoiled(self) -> frozenset[int]:
        """The numbers up to the highest that no file, or more than one, stands for."""
        sound = {number for number, claims in self._claims.items() if len(claims) == 1}
        return frozenset(set(range(max(self._claims) + 1)) - sound)

    def last_of_split(self, image: ImageFile) -> ImageFile:
        """Return the file with the index of the split that ``image`` is a data-only part of."""
        increment, number = image.document.increment, image.document.file_number
        for other in self.with_index:
            if other.document.increment == increment and other.document.file_number > number:
                return other
        parts = [other for other in self.files if other.document.increment == increment]
        raise self._incomplete({max(part.document.file_number for part in parts) + 1}, image)

    @property
    def is_encrypted(self) -> bool:
        """Whether any file is encrypted."""
        return any(image.document.encryption for image in self.files)

    def unlock(self, password: str) -> None:
        """Derive the key of an encrypted set and authenticate its files.

        Raises PasswordError when the password fits no file. A file of the set that has another password
        stays locked, a forged one is not read.
        """
        image_id = bytes.fromhex(self.image_id)
        ciphers: dict[ImageFile, BlockCipher | FormatError] = {}
        keys: dict[int, bytes] = {}
        tag_keys: dict[ImageFile, AuthenticationKeys] = {}
        for image in self.files:
            encryption = image.document.encryption
            if encryption is None:
                continue
            if encryption.iterations not in keys:
                keys[encryption.iterations] = derive_key(password, image_id, encryption.iterations)
            cipher = BlockCipher(keys[encryption.iterations], encryption, image_id)
            fits = cipher.fits(encryption)
            ciphers[image] = cipher if fits else PasswordError("the password is wrong", path=image.path)
            if fits:
                tag_keys[image] = AuthenticationKeys(keys[encryption.iterations])
        errors = [cipher for cipher in ciphers.values() if isinstance(cipher, FormatError)]
        if errors and len(errors) == len(ciphers):
            raise errors[0]
        found = authenticate_set(self.files, tag_keys)
        self._unlocked = frozenset(tag_keys)
        self.authentication = found
        self.check_store.ciphers, self.check_store.tags = ciphers, found.tags
        # The tags first: no block of an authenticated file is to be had without.
        self.store.tags = found.tags
        self.store.ciphers = {**ciphers, **found.forged}

    def state(self, image: ImageFile) -> FileAuthentication | None:
        """Return whether a file is authenticated; None while that can't be told."""
        forged = self.authentication.forged.get(image)
        if forged is not None:
            return FileAuthentication(image.path, FileState.FORGED, forged.reason)
        if image in self.authentication.authenticated:
            return FileAuthentication(image.path, FileState.AUTHENTICATED)
        if self._unlocked and (image in self._unlocked or image.document.encryption is None):
            return FileAuthentication(image.path, FileState.UNAUTHENTICATED)
        return None

    @property
    def tags(self) -> Mapping[int, bytes]:
        """The tags of the authenticated files by file number: what the next file of the set must list.

        Raises ForgedError when any file is forged: a set that is not what it was must not be continued.
        """
        for forged in self.authentication.forged.values():
            raise forged.with_traceback(None)
        authenticated = self.authentication.authenticated
        return {image.document.file_number: found.tag for image, found in authenticated.items()}

    def require(self, chain: Chain) -> None:
        """Raise PasswordError when a file of a chain is locked, ForgedError when it needs a forged one."""
        used = {*chain.files, *chain.earlier.values()}
        files = sorted(used | chain.holders, key=lambda image: image.document.file_number)
        ciphers = [(image, self.store.ciphers.get(image)) for image in files]
        for image, cipher in ciphers:
            if image in used and isinstance(cipher, PasswordError):
                raise cipher.with_traceback(None)
        for _, cipher in ciphers:
            if isinstance(cipher, ForgedError):
                raise cipher.with_traceback(None)

    def cipher(self, image: ImageFile) -> BlockCipher | None:
        """Return what decrypts a file's metadata.

        Raises PasswordError when the set is locked, ForgedError when the file is forged.
        """
        cipher = self.store.ciphers.get(image)
        if isinstance(cipher, FormatError):
            raise cipher.with_traceback(None)  # kept, and raised again: it must not grow
        return cipher

    def holder(self, number: int) -> ImageFile:
        """Return the file that stands for a file number.

        Raises IncompleteSetError or DuplicateMemberError where there is not exactly one.
        """
        claims = self._claims.get(number, ())
        if not claims:
            raise self._incomplete({number})
        if len(claims) > 1:
            raise DuplicateMemberError(self.image_id, number, [image.path for image in claims])
        return claims[0]

    def chain(self, target: ImageFile) -> Chain:
        """Return what a point is resolved from.

        Raises IncompleteSetError when the base, a delta, or a file whose blocks the point uses is not
        there, and DuplicateMemberError when two claim the number of one of these.
        """
        number = target.document.file_number
        below = [image for image in self.with_index if image.document.file_number <= number]
        # Without a history no gap in the numbers can be told from a file that is missing.
        history = target.document.history or frozenset(range(number))
        full = [image for image in below if not image.document.delta_index]
        if not full:
            raise self._incomplete((history - self._claims.keys()) or {0}, target)
        base = full[-1]
        first = base.document.file_number
        files = tuple(image for image in below if image.document.file_number >= first)
        earlier, found = self._earlier_bases(base, full[:-1])
        used = [*files, *earlier.values()]
        needed = {n for n in history if n >= first or not found}
        needed |= {image.document.file_number for image in used}
        # Which numbers the indexes name costs reading them whole: only where it could make a difference.
        if self.spoiled:
            for image in used:
                needed |= self.named(image) & self.spoiled
        missing = needed - self._claims.keys()
        if missing:
            raise self._incomplete(missing, target)
        holders = frozenset(self.holder(wanted) for wanted in sorted(needed))
        return Chain(files, earlier, holders)

    def _earlier_bases(
        self, base: ImageFile, before: Sequence[ImageFile]
    ) -> tuple[Mapping[Place, ImageFile], bool]:
        """Return who has the blocks of partitions that have none in the base, and whether all are found.

        ``before`` are the files with a full index before the base, in ascending order.
        """
        earlier: dict[Place, ImageFile] = {}
        complete = True
        for place, record in base.document.partitions():
            if record.block_count and not base.has_blocks(*place):
                having = [image for image in before if place in image.places and image.has_blocks(*place)]
                if having:
                    earlier[place] = having[-1]
                complete &= bool(having)
        return earlier, complete

    def changed_between(self, place: Place, first: ImageFile, last: ImageFile) -> bool:
        """Whether a delta between two files has blocks of a partition."""
        numbers = range(first.document.file_number + 1, last.document.file_number)
        return any(
            image.has_blocks(*place)
            for image in self.with_index
            if image.document.file_number in numbers and place in image.places
        )

    def named(self, image: ImageFile) -> frozenset[int]:
        """Return the file numbers that a file's own indexes name; reads them whole, once."""
        with self._lock:
            if image not in self._named:
                named: set[int] = set()
                for place in image.places:
                    index = image.index(*place)
                    named |= index.reserved.file_numbers() | index.blocks.file_numbers()
                self._named[image] = frozenset(named)
            return self._named[image]

    def role(self, image: ImageFile) -> Role:
        """Return what a file is. Its index tells; ``backup_type`` is only what was planned."""
        document = image.document
        if document.delta_index:
            return Role.INCREMENTAL
        if document.increment == 0:
            return Role.FULL
        others = {
            holder
            for number in self.named(image) - image.numbers
            for holder in self._claims.get(number, [])
            if not holder.document.split_file or holder.document.increment != document.increment
        }
        if not others and not self.named(image) - self._claims.keys():
            return Role.FULL
        if len({holder.document.increment for holder in others}) > 1 or document.backup_type == "inc":
            return Role.INCREMENTAL
        return Role.DIFFERENTIAL

    def _incomplete(self, missing: Iterable[int], target: ImageFile | None = None) -> IncompleteSetError:
        error = IncompleteSetError(
            self.image_id, missing, self.folder, path=target.path if target is not None else None
        )
        if self._unreadable:
            others = "; ".join(str(reason) for reason in self._unreadable.values())
            error.hint += f"; a file there can't be read: {others}"
        return error

    def close(self) -> None:
        """Close every file."""
        for image in self.files:
            image.close()


def check_shape(chain: Chain, place: Place) -> None:
    """Check that a partition is the same, and the same array of blocks, in every file of a chain.

    Disks and partitions are matched by their position in the documents; what else is recorded of them tells
    when another one took the position. Raises DamagedError.
    """
    disk, partition = place
    wanted_disk = chain.target.document.disks[disk]
    wanted = wanted_disk.partitions[partition]
    target = chain.target.path.name
    for image in {*chain.files, chain.base_of(place)}:
        if place not in image.places:
            raise DamagedError(
                f"it has no disk {disk + 1}, partition {partition + 1} (counted in the file),"
                f" which {target} builds upon",
                path=image.path,
            )
        found_disk = image.document.disks[disk]
        found = found_disk.partitions[partition]
        # Disks are renumbered, and signed anew, but not both between two backups; partitions grow.
        same_disk = found_disk.signature == wanted_disk.signature or found_disk.number == wanted_disk.number
        size = found.number, found.length
        if not same_disk or (found.start != wanted.start and size != (wanted.number, wanted.length)):
            raise DamagedError(
                f"disk {disk + 1}, partition {partition + 1} (counted in the file) is another one than in"
                f" {target}",
                path=image.path,
            )
        if (found.block_size, found.data_offset) != (wanted.block_size, wanted.data_offset):
            raise DamagedError(
                f"partition {found.number} has another block layout than in {target}", path=image.path
            )
