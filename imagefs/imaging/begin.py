"""How a backup begins: which set it goes into, as what, and under which lock."""

import secrets
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from formats.container import Role
from formats.errors import PasswordError
from formats.mrimgx.cipher import derive_key, key_check
from formats.mrimgx.document import Encryption
from formats.mrimgx.layout import ELEMENT
from imagefs.errors import RefusedError, UsageError
from imagefs.imaging.lock import SetLock
from imagefs.imaging.matching import Parent, find_parent, open_parent
from imagefs.imaging.options import BackupOptions, Listener
from imagefs.imaging.plan import Plan
from imagefs.imaging.sources import Source
from imagefs.imaging.unfinished import STATE, SUFFIX, Unfinished
from imagefs.machine.volumes import largest_file


def begin(
    folder: Path,
    source: Source,
    plan: Plan,
    options: BackupOptions,
    password: str | None,
    owned: ExitStack,
    listener: Listener,
) -> tuple[Unfinished, Parent | None]:
    """Choose the set and what kind of image goes into it; lock it, and begin the run."""
    parent = _choose_parent(folder, plan, options, password, listener)
    if parent is not None:
        owned.enter_context(parent.container)
    image_id = parent.container.image_id if parent is not None else secrets.token_hex(8).upper()
    owned.enter_context(SetLock(folder, image_id))
    now = int(time.time())
    job: dict[str, Any] = {
        "version": 1,
        "source": str(source.path.absolute()),
        "image_id": image_id,
        "file_number": 0,
        "increment": 0,
        "role": str(Role.FULL),
        "created": now,
        "set_created": now,
        "guid": str(uuid.uuid4()),
        "name": options.name,
        "compression": options.compression or "medium",
        "encryption": None,
        "parent": None,
        "disk_numbers": [disk.record.number for disk in plan.disks],
        "options": options.document(),
        "snapshots": source.snapshots.id if source.snapshots is not None else "",
    }
    if password is None and options.aes is not None:
        raise UsageError("encryption needs a password", hint="--password-file or IMAGEFS_PASSWORD")
    if password is not None and parent is None:
        encryption = Encryption(options.aes or "aes-256", b"", options.key_iterations)
        key = derive_key(password, bytes.fromhex(image_id), encryption.iterations)
        job["encryption"] = _encryption_document(
            Encryption(encryption.aes_type, key_check(key), encryption.iterations)
        )
    if parent is not None:
        # Another writer may have been faster than the lock: what was chosen must still be the newest.
        open_parent(folder, image_id, parent.point.file_number, parent.next_number).container.close()
        job |= _continued(parent, options, password, listener)
    if job["role"] != Role.INCREMENTAL:
        _refuse_small_files(plan, file_limit(folder, options))
    plan = plan.numbered(job["disk_numbers"])
    job["fingerprint"] = plan.fingerprint()
    name = f"{image_id}-{job['increment']:02}-{job['file_number']:02}{SUFFIX}"
    if source.snapshots is not None:
        source.snapshots.needed_by(folder / name / STATE)
    return Unfinished.create(folder / name, job), parent


def file_limit(folder: Path, options: BackupOptions) -> int | None:
    """Return the bytes that a file of the image may have, None where nothing limits it."""
    return min((size for size in (options.split, largest_file(folder)) if size), default=None)


def _refuse_small_files(plan: Plan, limit: int | None) -> None:
    """Refuse at once files that the index, of which every block has an element, can't be in."""
    records = [part.record for disk in plan.disks for part in disk.partitions]
    needed = sum(-(-part.data_length // part.block_size) * ELEMENT.itemsize for part in records)
    if limit is not None and needed > limit:
        raise UsageError(f"the index needs {needed} bytes, files of {limit} are too small for it")


def _choose_parent(
    folder: Path, plan: Plan, options: BackupOptions, password: str | None, listener: Listener
) -> Parent | None:
    """Return what the image builds upon, None for a full."""
    if options.type == "full":
        return None
    match = find_parent(folder, plan, encrypted=password is not None, differential=options.type == "diff")
    if match.parent is not None:
        return match.parent
    if match.locked and password is None:
        raise PasswordError(f"set {match.locked} of this source is encrypted", hint="give its password")
    if options.type != "auto" and match.problem is not None:
        raise match.problem
    if options.type != "auto" and not match.is_reshaped:
        reasons = "; ".join(match.reasons) or "no set of this source is here"
        raise RefusedError(
            f"there is nothing to build upon: {reasons}", path=folder, hint="--type full begins a set"
        )
    for reason in match.reasons:
        listener.say(f"{reason}: a new full is made")
    return None


def _continued(
    parent: Parent, options: BackupOptions, password: str | None, listener: Listener
) -> dict[str, Any]:
    """Return what an image takes over from its set: numbers, compression, encryption."""
    newest = (
        parent.files[-1].document if not parent.files[-1].document.split_file else parent.point.image.document
    )
    if password is not None:
        parent.container.unlock(password)
        parent.point.require_key()
    for what, wanted, has in (
        ("compression", options.compression, newest.compression),
        ("encryption", options.aes, newest.encryption.aes_type if newest.encryption else None),
    ):
        if wanted is not None and wanted != has:
            listener.say(f"the set has {what} {has}, which stays: {wanted} needs a new full")
    role = Role.DIFFERENTIAL if options.type == "diff" else Role.INCREMENTAL
    definition = newest.json.get("_auxiliary_data", {}).get("backup_definition", {})
    return {
        "file_number": parent.next_number,
        "increment": parent.next_increment,
        "role": str(role),
        "set_created": newest.json["_header"].get("backupset_time", int(parent.point.created.timestamp())),
        "name": options.name or _safe_name(definition.get("filename_template")),
        "compression": newest.compression,
        "encryption": _encryption_document(newest.encryption) if newest.encryption else None,
        "parent": parent.point.file_number,
        "disk_numbers": [disk.number for disk in newest.disks],
    }


def _safe_name(name: object) -> str:
    """Return a set's name where it can be part of a file name; Reflect may have a template with braces."""
    if not isinstance(name, str) or "{" in name:
        return ""
    try:
        return BackupOptions(name=name).name
    except UsageError:
        return ""


def _encryption_document(encryption: Encryption) -> dict[str, Any]:
    return {
        "aes_type": encryption.aes_type,
        "enable": True,
        "hmac": encryption.hmac.hex(),  # in lower case, as Reflect
        "key_derivation": "pbkdf2",
        "key_iterations": encryption.iterations,
    }
