"""One run: from the blocks of a plan to an image that is complete but for its name in the set."""

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from formats.files import open_stream, sync
from formats.mrimgx.authentication import AuthenticationKeys
from formats.mrimgx.cipher import BlockCipher
from formats.mrimgx.encoder import BlockEncoder
from formats.mrimgx.index import Elements, ResolvedIndex
from formats.mrimgx.layout import ELEMENT
from formats.mrimgx.new_document import NewFile
from formats.mrimgx.writer import (
    Authentication,
    BaseElements,
    NewIndex,
    end_length,
    finish_data_part,
    finish_image,
    no_blocks,
)
from imagefs.errors import RefusedError, UsageError
from imagefs.imaging.options import BackupOptions, Listener, Progress
from imagefs.imaging.pipeline import Encoder, Result
from imagefs.imaging.plan import Plan
from imagefs.imaging.sources import Source
from imagefs.imaging.target import Parts, Retries, with_retries, write_error
from imagefs.imaging.tasks import BlockArray, Task, count_used, plan_tasks
from imagefs.imaging.unfinished import ElementsFile, State, Unfinished
from imagefs.parallel import in_order, workers

_RECORD = struct.Struct("<q16sIHI")  # an element of a delta index
_PART_END = 64 * 1024  # bytes that a data-only part's end takes at the most
_REPORT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Keys:
    """What an encrypted set is written with."""

    cipher: BlockCipher
    authentication: AuthenticationKeys
    members: Sequence[tuple[int, bytes]]  # the authenticated files that the set has: number, tag


class Run:
    """Stores the blocks of a plan, from where ``unfinished`` stands, and completes the image.

    ``parents`` gives the index that an array's blocks are compared with, by the array's place: none for a
    full. ``file`` is the first file as it will be recorded, but for its path and its history, which has
    the files that were there before; ``path_of`` gives the path of each number.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        file: NewFile,
        path_of: Callable[[int], Path],
        parents: dict[tuple[int, int], ResolvedIndex],
        unfinished: Unfinished,
        options: BackupOptions,
        listener: Listener,
        keys: Keys | None,
        limit: int | None,
    ) -> None:
        self._source = source
        self._file = file
        self._path_of = path_of
        self._unfinished = unfinished
        self._options = options
        self._listener = listener
        self._keys = keys
        self._limit = limit
        self._retries = Retries(options.retries, options.retry_seconds)
        self._arrays = [
            array if array.is_reserved else replace(array, parent=parents.get(array.place))
            for array in plan.arrays()
        ]
        # Adding up tells how much is to be read; nothing else depends on it.
        self._total = sum(
            min(count * array.block_size, array.size)
            for count, array in zip(count_used(self._arrays), self._arrays, strict=True)
        )
        self._done = 0
        self._reported = 0.0
        self._saved = time.monotonic()

    def store(self) -> None:
        """Store what is to be stored; the state tells how far this came, whatever ends it."""
        state, options = self._unfinished.state, self._options
        keys, limit = self._keys, self._limit
        encode = BlockEncoder(self._file.compression, keys.cipher if keys else None).encode
        encoder = Encoder(
            self._arrays,
            encode,
            tag=keys.authentication.block_tag if keys else lambda _: b"",
            skip_bad=options.skip_bad,
        )
        part_limit = limit - _PART_END if limit is not None else None
        retries = self._retries
        elements = ElementsFile(
            self._unfinished.elements, state.elements, tagged=keys is not None, retries=retries
        )
        try:
            if state.next != (0, 0):
                self._check_unchanged(elements)
            with Parts(
                self._unfinished.folder, self._file.file_number, part_limit, retries, state.lengths
            ) as parts:
                try:
                    tasks = plan_tasks(self._arrays, state.next)
                    if options.rate_limit:
                        tasks = self._paced(tasks, options.rate_limit)
                    with closing(in_order(encoder, tasks, workers())) as results:
                        for result in results:
                            self._keep(result, parts, elements)
                except BaseException:
                    self._save_what_can_be(parts, elements)
                    raise
                self._checkpoint(parts, elements)
        finally:
            elements.close()

    def _keep(self, result: Result, parts: Parts, elements: ElementsFile) -> None:
        """Write a task's blocks and their records."""
        blocks, state, task = result.blocks, self._unfinished.state, result.task
        places = iter(parts.append([block.stored for block in blocks if block.stored]))
        records = []
        for block, md5, stored, tag in blocks:
            if stored:
                number, position = next(places)
                records.append(_RECORD.pack(position, md5, len(stored), number, block) + tag)
            else:
                # A hole's file number must be one of the set, which 0 need not be.
                free = _RECORD.pack(0, md5, 0, self._file.file_number, block)
                records.append(free + bytes(16 if self._keys else 0))
        elements.append(task.array, b"".join(records))
        written = sum(1 for block in blocks if block.stored)
        counts = {
            key: state.counts.get(key, 0) + count
            for key, count in (
                ("written", written),
                ("freed", len(blocks) - written),
                ("unchanged", result.unchanged),
                ("read", result.bytes_read),
            )
        }
        place = self._arrays[task.array].place
        unreadable = list(state.unreadable) if result.unreadable else state.unreadable
        for offset, length in result.unreadable:
            last = unreadable[-1] if unreadable else None
            if last is not None and (*last[:2], last[2] + last[3]) == (*place, offset):
                unreadable[-1] = (*place, last[2], last[3] + length)
            else:
                unreadable.append((*place, offset, length))
        # Replaced at once: an interruption at any moment finds the state of before or after this task.
        self._unfinished.state = State(
            lengths=list(parts.lengths),
            elements=list(elements.counts),
            next=(task.array, task.end),
            unreadable=unreadable,
            counts=counts,
        )
        self._tell("reading", result.bytes_read, parts.stored)
        if time.monotonic() - self._saved >= self._options.checkpoint_seconds:
            self._checkpoint(parts, elements)

    def _checkpoint(self, parts: Parts, elements: ElementsFile) -> None:
        """Make everything so far durable, in this order: blocks, records, the state that counts on them."""
        parts.sync()
        elements.sync()
        self._unfinished.save(self._retries)
        self._saved = time.monotonic()

    def _save_what_can_be(self, parts: Parts, elements: ElementsFile) -> None:
        """Keep what was stored before an error; where that fails too, the last checkpoint stands."""
        try:
            parts.cut(self._unfinished.state.lengths)
            self._checkpoint(parts, elements)
        except Exception as error:
            self._listener.say(f"the last seconds could not be kept: {error}")

    def _paced(self, tasks: Iterator[Task], rate: int) -> Iterator[Task]:
        """Hand out tasks no faster than so many bytes of the source a second."""
        start, handed = time.monotonic(), 0
        for task in tasks:
            yield task
            handed += sum(count for _, count in task.runs) * self._arrays[task.array].block_size
            ahead = handed / rate - (time.monotonic() - start)
            if ahead > 0:
                time.sleep(ahead)

    def _check_unchanged(self, elements: ElementsFile) -> None:
        """Hold what was read before the interruption against the source; RefusedError where it changed."""
        stop = self._unfinished.state.next
        hasher = Encoder(self._arrays, None, skip_bad=self._options.skip_bad)
        tasks = plan_tasks(self._arrays, stop=stop)
        records: dict[int, Iterator[np.void]] = {
            number: chain.from_iterable(elements.elements(number)) for number in range(len(self._arrays))
        }
        with closing(in_order(hasher, tasks, workers())) as results:
            for result in results:
                array = result.task.array
                for block, md5, _, _ in result.blocks:
                    record = next(records[array], None)
                    if record is None or int(record["block"]) != block or record["md5"].tobytes() != md5:
                        raise self._changed(array, block)
                self._tell("checking", result.bytes_read, sum(self._unfinished.state.lengths))
        for array, rest in records.items():
            record = next(rest, None)
            if record is not None:
                raise self._changed(array, int(record["block"]))

    def _changed(self, array: int, block: int) -> RefusedError:
        found = self._arrays[array]
        return RefusedError(
            f"{found.name} has changed since the interruption, at block {block}"
            f" ({found.start + block * found.block_size}+{found.block_size}):"
            " the image would be of no one moment",
            path=self._source.path,
            hint="--discard drops the unfinished backup; then start anew",
        )

    def _tell(self, phase: str, done: int, stored: int) -> None:
        self._done += done
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._listener.progress(Progress(phase, self._done, self._total, stored))

    def finish(self, own: dict[str, object] | None) -> list[NewFile]:
        """Write what makes the parts images, and make them durable; return their files in order.

        ``own`` is what our own metadata block is to tell.
        """
        state, file = self._unfinished.state, self._file
        self._listener.progress(Progress("finishing", self._done, self._total, sum(state.lengths)))
        elements = ElementsFile(self._unfinished.elements, state.elements, tagged=self._keys is not None)
        lengths = list(state.lengths)
        try:
            indexes = self._indexes(elements)
            needed = end_length(self._described(file.file_number, [file.file_number]), indexes)
            if self._limit is not None and lengths[-1] + needed > self._limit:
                lengths.append(0)  # the index gets a file of its own
                if needed > self._limit:
                    raise UsageError(
                        f"the index needs {needed} bytes, files of {self._limit} are too small for it"
                    )
            numbers = [file.file_number + part for part in range(len(lengths))]
            members = list(self._keys.members) if self._keys else []
            files = []
            for part, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
                is_last = part == len(lengths) - 1
                files.append(self._described(number, numbers))
                authentication = (
                    Authentication(self._keys.authentication, numbers if is_last else [number], list(members))
                    if self._keys
                    else None
                )
                path = self._unfinished.folder / f"data-{part}"
                finish = partial(finish_image, indexes=indexes, own=own) if is_last else finish_data_part
                try:
                    with open_stream(path, "r+b" if path.exists() else "w+b") as stream:
                        tag = with_retries(
                            partial(finish, stream, length, files[-1], authentication=authentication),
                            self._retries,
                            path,
                        )
                        sync(stream.fileno())
                except OSError as error:
                    raise write_error(error, path) from error
                members.append((number, tag))
        finally:
            elements.close()
        return files

    def _described(self, number: int, numbers: Sequence[int]) -> NewFile:
        """Return the record of one of the run's files, which have these numbers."""
        written = [(each, str(self._path_of(each))) for each in numbers]
        return replace(
            self._file,
            file_number=number,
            path=str(self._path_of(number)),
            history=[*self._file.history, *written],
        )

    def _indexes(self, elements: ElementsFile) -> list[list[NewIndex]]:
        """Return the index of every partition, by disk and partition."""
        result: list[list[NewIndex]] = [[] for _ in self._file.disks]
        reserved: Elements = np.empty(0, ELEMENT)
        for number, array in enumerate(self._arrays):
            if array.is_reserved:
                reserved, reserved_number = _plain(elements, number), number
                continue
            own = [number] if not len(reserved) else [reserved_number, number]
            result[array.place[0]].append(
                NewIndex(
                    reserved=reserved,
                    own=partial(elements.elements, number),
                    own_count=elements.count(number),
                    block_count=array.count,
                    base=None if self._file.delta_index else _base(array),
                    tags=partial(_tags, elements, own) if self._keys else None,
                    tag_count=sum(elements.count(each) for each in own),
                )
            )
            reserved = np.empty(0, ELEMENT)
        return result


def _plain(elements: ElementsFile, number: int) -> Elements:
    """Return the records of reserved sectors, which are few, as rows of ELEMENT."""
    chunks = [
        np.rec.fromarrays([rows[name] for name in ELEMENT.names or ()], dtype=ELEMENT)
        for rows in elements.elements(number)
    ]
    return np.concatenate(chunks) if chunks else np.empty(0, ELEMENT)


def _base(array: BlockArray) -> BaseElements:
    return array.parent.elements if array.parent is not None else no_blocks


def _tags(elements: ElementsFile, numbers: Sequence[int]) -> Iterator[bytes]:
    return chain.from_iterable(elements.tags(number) for number in numbers)
