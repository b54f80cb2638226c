"""What an adapter did that Windows would not forgive: collected, and told at the end of a test."""

import logging
import threading


class Faults(logging.Handler):
    """Everything that was wrong; also what winfspy logs of exceptions in callbacks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []
        self._guard = threading.Lock()

    def add(self, text: str) -> None:
        with self._guard:
            self.found.append(text)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.add(f"logged: {record.getMessage()} {error!r}")

    def take(self) -> list[str]:
        """Return what was found, and forget it."""
        with self._guard:
            found, self.found = self.found, []
        return found

    def check(self) -> None:
        """Fail where anything was found."""
        found = self.take()
        assert not found, "\n".join(found)
