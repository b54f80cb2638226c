"""``imagefs points``: the backup points of a folder or of an image's set."""

from rich.markup import escape
from rich.table import Table

from imagefs.cli.common import Json, PasswordFile, SourceArgument, opened, output, print_json, size_text
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
        table = Table("point", "file", "stored", "", box=None)
        for point in backup_set["points"]:
            reason = f"[red]{escape(point['reason'])}[/red]" if point["reason"] else ""
            table.add_row(point["name"], escape(point["path"]), size_text(point["stored_bytes"]), reason)
        output.print(table)
    for file in document["unreadable"]:
        output.print(f"[red]can't be read[/red]: {escape(file['path'])}: {escape(file['reason'])}")
