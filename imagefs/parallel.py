"""Work on all cores whose results come back in order, with a bounded number of tasks in flight."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

MOST_WORKERS = 32
AHEAD = 4  # tasks beyond those being done
_KEPT = 31 * 1024 * 1024  # below the 32 MiB up to which glibc learns
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def workers() -> int:
    """Return how many threads encode: as many as this process may use cores."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return min(count, MOST_WORKERS)


def keep_memory() -> None:
    """Have the C library keep the memory of blocks, which come and go, for those that follow.

    glibc returns free memory above twice the largest block that it mapped and freed (mallopt(3),
    M_TRIM_THRESHOLD): without this one, getting it back costs a page fault for each 4 KiB.
    """
    bytes(_KEPT)  # never touched, so it costs nothing


class _Work(Generic[_Task, _Result]):
    """A task that was handed out, and what came of it."""

    __slots__ = ("error", "finished", "result", "task")

    def __init__(self, task: _Task) -> None:
        self.task = task
        self.result: _Result | None = None
        self.error: BaseException | None = None
        self.finished = threading.Lock()
        self.finished.acquire()

    def do(self, do: Callable[[_Task], _Result]) -> None:
        try:
            self.result = do(self.task)
        except BaseException as error:  # told where the results are taken
            self.error = error
        finally:
            self.finished.release()


def in_order(
    do: Callable[[_Task], _Result],
    tasks: Iterator[_Task],
    threads: int,
    ahead: int = AHEAD,
    stop: Callable[[], None] = lambda: None,
) -> Generator[_Result, None, None]:
    """Yield the results of tasks in their order, with at most ``ahead`` in flight beyond those being done.

    ``stop`` is called when nobody wants more: tasks that take long should end then. Who takes the results is
    one of the ``threads``: it does tasks itself while the next result is not there, instead of waiting to be
    woken.
    """
    limit = threads + ahead
    running: deque[_Work[_Task, _Result]] = deque()
    queue: SimpleQueue[_Work[_Task, _Result] | None] = SimpleQueue()

    def serve() -> None:
        while (work := queue.get()) is not None:
            work.do(do)

    helpers = [threading.Thread(target=serve, name=f"work-{n}", daemon=True) for n in range(1, threads)]
    for helper in helpers:
        helper.start()
    try:
        more = True
        while more or running:
            while more and len(running) < limit:
                task = next(tasks, None)
                if task is None:
                    more = False
                else:
                    running.append(_Work(task))
                    queue.put(running[-1])
            if not running:
                break
            while not running[0].finished.acquire(blocking=False):
                try:
                    waiting = queue.get_nowait()
                except Empty:
                    running[0].finished.acquire()
                    break
                if waiting is not None:
                    waiting.do(do)
            work = running.popleft()
            if work.error is not None:
                raise work.error
            assert work.result is not None
            yield work.result
    finally:
        stop()
        with suppress(Empty):
            while True:
                queue.get_nowait()
        for _ in helpers:
            queue.put(None)
        for helper in helpers:
            helper.join()
