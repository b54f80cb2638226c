"""Threads that Python did not make: callbacks enter from them, as they do from a driver's."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_SOURCE = """
int pthread_create(uintptr_t *, void *, void *(*)(void *), void *);
int pthread_join(uintptr_t, void **);
uintptr_t pthread_self(void);
"""


class NativeThreads:
    """Threads of the C library, which do what they are given until ``finish``."""

    def __init__(self, count: int) -> None:
        import cffi

        self._ffi = cffi.FFI()
        self._ffi.cdef(_SOURCE)
        self._libc = self._ffi.dlopen(None)
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._start = self._ffi.callback("void *(void *)", self._run)
        self._threads: list[Any] = []
        self.ended = False
        for _ in range(count):
            thread = self._ffi.new("uintptr_t *")
            assert self._libc.pthread_create(thread, self._ffi.NULL, self._start, self._ffi.NULL) == 0
            self._threads.append(thread)

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._work.put((future, task))
        return future

    def _run(self, _: Any) -> Any:
        while (work := self._work.get()) is not None:
            future, task = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)
        return self._ffi.NULL

    def is_one(self) -> bool:
        """Return whether the caller is one of them."""
        me = self._libc.pthread_self()
        return any(thread[0] == me for thread in self._threads)

    def finish(self) -> None:
        """Let what runs end, cancel what waits, end the threads."""
        self.ended = True
        waiting = []
        while True:
            try:
                waiting.append(self._work.get_nowait())
            except queue.Empty:
                break
        for _ in self._threads:
            self._work.put(None)
        for work in waiting:
            if work is not None:
                work[0].cancel()
        for thread in self._threads:
            self._libc.pthread_join(thread[0], self._ffi.NULL)
