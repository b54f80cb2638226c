"""``imagefs info``: what one image file holds."""

from collections.abc import Iterator
from typing import Any

from rich.markup import escape

from formats.errors import NotAnImageError
from imagefs.cli.common import ImageArgument, Json, columns, name_text, opened, output, print_json, size_text
from imagefs.report import info_document, unreadable_text


def info(image: ImageArgument, json: Json = False) -> None:
    """Show what an image holds: its set, its disks and partitions. No password is needed.

    Example: imagefs info 2394E9AA621DDC3A-00-00.mrimgx

    Exit codes: 0, also when files of the set are missing · 2 · 3 · 7.
    """
    with opened(image, ask=False) as source:
        if source.point is None:
            raise NotAnImageError("a folder; imagefs points lists its sets", path=image)
        document = info_document(source.sets[0], source.point)
    if json:
        print_json(document)
        return
    complete = "yes" if document["complete"] else f"[red]no[/red]: {escape(name_text(document['problem']))}"
    rows = {
        "format": document["format"],
        "set": document["image_id"],
        "file": f"number {document['file_number']}, increment {document['increment']}, {document['role']}",
        "created": document["created"],
        "complete": complete,
        "encrypted": "yes" if document["encrypted"] else "no",
        "compression": document["compression"],
    }
    for key, value in rows.items():
        output.print(f"{key:<12} {value}")
    for line in _not_taken(document):
        output.print(line)
    for disk in document["disks"]:
        output.print(
            f"\n[bold]{disk['name']}[/bold]  {size_text(disk['size'])}, {disk['scheme']},"
            f" {disk['sector_size']}-byte sectors"
        )
        table = [("name", "file system", "label", "offset", "size", "blocks stored")]
        table += [
            (
                part["name"],
                name_text(part["file_system"]),
                name_text(part["label"]),
                str(part["offset"]),
                size_text(part["size"]),
                f"{part['stored_blocks']} of {part['block_count']}",
            )
            for part in disk["partitions"]
        ]
        for line in columns(table, right=(3, 4)):
            output.print(line)
        for part in disk["partitions"]:
            if part["encryption"]:
                output.print(escape(name_text(f"{part['name']}: {_encryption_text(part['encryption'])}")))
            for file in part["left_out"] or ():
                output.print(
                    f"{part['name']}/{file['path']}: {size_text(file['missing'])} of its"
                    f" {size_text(file['size'])} are not in the image: the imaging program leaves them out"
                )


def _encryption_text(encryption: dict[str, Any]) -> str:
    ways = [f"{way['kind']} {way['identifier'].upper()}" for way in encryption["protectors"]]
    facts = ", ".join(filter(None, [encryption["kind"], encryption["method"], encryption["state"]]))
    return f"{facts}; opened by {', '.join(ways)}" if ways else facts


def _not_taken(document: dict[str, Any]) -> Iterator[str]:
    """Yield a line for what is not in the image: bytes that could not be read, files that were left out."""
    if document["unreadable"] is None:
        yield "[red]damaged[/red]      the record of what was left out and what could not be read"
        return
    for entry in document["unreadable"]:
        yield f"[red]unreadable[/red]   {escape(unreadable_text(entry))}"
    if document["excluded"]:
        yield f"{'excluded':<12} {escape(name_text(', '.join(document['excluded'])))}"
    if document["left_out"]:
        yield f"{'left out':<12} {len(document['left_out'])} files, listed by --json"
