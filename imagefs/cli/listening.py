"""Progress and messages of a job that writes: a bar and lines for people, or events as JSON lines."""

import json as json_module
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from imagefs.cli.common import progress_bar, say, size_text, write_errors
from imagefs.imaging.options import Listener, Progress


@contextmanager
def listening(what: str, outcome: str, *, json: bool) -> Iterator[Listener]:
    """Show a job's progress and messages on standard error; ``outcome`` is what becomes of its bytes."""
    with progress_bar(what, quiet=json) as bar:

        def show(progress: Progress) -> None:
            if json:
                _event("progress", **asdict(progress))
            bar.update(
                bar.task_ids[0],
                completed=progress.done,
                total=progress.total,
                description=f"{progress.phase}, {size_text(progress.stored)} {outcome}",
            )

        def tell(line: str) -> None:
            if json:
                _event("message", text=line)
            else:
                say(line)

        yield Listener(show, tell)


def _event(kind: str, **values: object) -> None:
    write_errors(json_module.dumps({"event": kind, **values}) + "\n")
