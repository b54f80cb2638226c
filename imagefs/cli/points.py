"""``imagefs points``: the backup points of a folder or of an image's set."""

from rich.markup import escape

from imagefs.cli.common import (
    Json,
    PasswordFile,
    SourceArgument,
    columns,
    name_text,
    opened,
    output,
    print_json,
    size_text,
)
from imagefs.report import points_document


def points(source: SourceArgument, password_file: PasswordFile = None, json: Json = False) -> None:
    """List the sets and backup points of a folder, or of the set that an image belongs to.

    Points that can't be read say why.

    Example: imagefs points /backups

    Exit codes: 0 · 2 · 3 · 5 when a password is given and wrong · 7.
    """
    with opened(source, password_file, ask=False) as opened_source:
        document = points_document(opened_source)
    if json:
        print_json(document)
        return
    for backup_set in document["sets"]:
        locked = ", encrypted" if backup_set["encrypted"] else ""
        output.print(f"[bold]{backup_set['image_id']}[/bold]{locked}")
        rows = [
            (point["name"], size_text(point["stored_bytes"]), name_text(point["path"]))
            for point in backup_set["points"]
        ]
        for line, point in zip(columns(rows, right=(1,)), backup_set["points"], strict=True):
            output.print(f"  {line}")
            if point["reason"]:
                output.print(f"    [red]can't be read[/red]: {escape(name_text(point['reason']))}")
    for file in document["unreadable"]:
        told = escape(name_text(f"{file['path']}: {file['reason']}"))
        output.print(f"[red]can't be read[/red]: {told}")
