"""What IMAGE or FOLDER names: the front door for the command line and for programs."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakSet

import formats
from formats.container import Container, Point
from formats.errors import FormatError, NotAnImageError, PasswordError
from imagefs.filesystems import VolumeOptions
from imagefs.tree import ImageTree, unreadable_reason


class Source:
    """An opened image file, with the set it belongs to, or an opened folder with its sets.

    ``point`` is the backup point that an image file names, None for a folder. ``unreadable`` tells the
    files of a folder that look like images and can't be understood, each with the reason.
    """

    def __init__(self, path: Path, sets: Sequence[Container], unreadable: Mapping[Path, FormatError]) -> None:
        self.path = path
        self.sets = sets
        self.unreadable = unreadable
        self.is_folder = path.is_dir()
        self._trees: WeakSet[ImageTree] = WeakSet()

    @property
    def point(self) -> Point | None:
        """The point that an image file names."""
        return None if self.is_folder else self.sets[0].point

    @property
    def is_encrypted(self) -> bool:
        """Whether a password is needed for any of it."""
        return any(container.is_encrypted for container in self.sets)

    @property
    def left_out(self) -> Mapping[Point, FormatError]:
        """The points that can't be read now, each with the reason; a folder's tree doesn't show them."""
        points = (point for container in self.sets for point in container.points)
        reasons = ((point, unreadable_reason(point)) for point in points)
        return {point: reason for point, reason in reasons if reason is not None}

    def paths_left_out(self) -> frozenset[str]:
        """Return the paths in the tree of files that points are recorded to lack the contents of.

        Not all where they are many; none of points that can't be read, or whose record is damaged.
        """
        found: set[str] = set()
        left_out = self.left_out
        for container in self.sets:
            for point in container.points if self.is_folder else [container.point]:
                if point is not None and point not in left_out:
                    with suppress(FormatError):
                        folder = f"{container.image_id}/{point.name}/" if self.is_folder else ""
                        found.update(f"{folder}{path}" for path in point.left_out)
        return frozenset(found)

    def unlock(self, password: str) -> None:
        """Make encrypted sets readable; raises PasswordError when the password fits none of them."""
        encrypted = [container for container in self.sets if container.is_encrypted]
        errors: list[PasswordError] = []
        for container in encrypted:
            try:
                container.unlock(password)
            except PasswordError as error:
                errors.append(error)
        if encrypted and len(errors) == len(encrypted):
            raise errors[0]

    def tree(self, volume: str = "", options: VolumeOptions | None = None) -> ImageTree:
        """Return the tree of the point, or of the folder; ``volume`` ("disk4/p1") roots it there.

        ``options`` say how volumes are read. It is closed with the source.

        Raises FormatError when the point, or no point of the folder, can be read, OSError when there is
        no such volume.
        """
        if self.point is not None:
            tree = ImageTree.of_point(self.point, options)
        else:
            left_out = self.left_out
            if len(left_out) == sum(len(container.points) for container in self.sets):
                nothing = NotAnImageError("no backup point, only parts of sets", path=self.path)
                raise next(iter([*left_out.values(), *self.unreadable.values(), nothing]))
            tree = ImageTree.of_sets(self.sets, options)
        self._trees.add(tree)
        if volume:
            tree.set_root(volume)
        return tree

    def close(self) -> None:
        """Close the trees that were given out, then all files."""
        for tree in list(self._trees):
            tree.close()
        for container in self.sets:
            container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(path: str | os.PathLike[str], password: str | None = None) -> Source:
    """Open an image file or a folder of images; headers only.

    Raises FormatError (``formats.errors``): NotAnImageError, DamagedError, UnsupportedError when a file
    can't be understood, ReadError when it can't be read, PasswordError when the password is wrong. An
    incomplete point opens; reading it raises IncompleteSetError.
    """
    where = Path(path)
    if where.is_dir():
        sets, unreadable = formats.open_folder(where)
        if not sets and not unreadable:
            raise NotAnImageError("no image in this folder", path=where)
        source = Source(where, sets, unreadable)
    elif where.is_file() or where.is_block_device() or not where.exists():
        source = Source(where, [formats.open_container(where)], {})
    else:
        raise NotAnImageError("neither a file nor a folder", path=where)
    if password is not None:
        try:
            source.unlock(password)
        except BaseException:
            source.close()
            raise
    return source
