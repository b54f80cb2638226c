"""``make demo``: the main job on real input, shown command by command.

The real sample is mounted where it is beside the repository; elsewhere a small NTFS disk is built and imaged.
"""

import lzma
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from fixtures.disks import change_disk, ntfs_disk
from fixtures.mrimgx_writer import SetWriter
from fixtures.tools import find_tool

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "2394E9AA621DDC3A-00-00.mrimgx.xz"
IMAGEFS = Path(sys.executable).with_name("imagefs")


def show(*command: str | Path) -> str:
    """Run a command as typed, print what it prints, and stop where it fails."""
    arguments = [str(part) for part in command]
    print(f"\n$ {shlex.join(arguments)}", flush=True)
    if arguments[0] == "imagefs":
        arguments[0] = str(IMAGEFS)
    done = subprocess.run(arguments, stdout=subprocess.PIPE, check=True)
    text = done.stdout.decode(errors="replace")
    print(text, end="" if text.endswith("\n") or not text else "\n", flush=True)
    return text


def prepare(folder: Path) -> tuple[Path, str, str]:
    """Put an image into a folder; return it with a volume and a file of it."""
    if SAMPLE.exists():
        print("the sample: Macrium's own demo image, a full of a 120 GB disk (MIT licence)")
        image = folder / SAMPLE.stem
        image.write_bytes(lzma.decompress(SAMPLE.read_bytes()))
        return image, "disk4/p1", "readme.txt"
    print("the sample is not there: building a small NTFS disk and imaging it, a full and an incremental")
    disk = ntfs_disk(folder, size=48 << 20, big=1 << 20, many=100, fragments=0)
    changed = change_disk(disk, folder, "changed")
    writer = SetWriter(folder / "set")
    writer.full([disk])
    smallest = min(changed.partitions[0].files, key=len)
    return writer.incremental([changed]).path, "disk1/p1", smallest


def main() -> None:
    """Show the main job: look, verify, copy, mount, read, unmount, back up, restore, convert."""
    with tempfile.TemporaryDirectory(prefix="imagefs-demo-") as name:
        folder = Path(name)
        image, volume, file = prepare(folder)
        os.chdir(image.parent)
        show("imagefs", "info", image.name)
        show("imagefs", "points", ".")
        show("imagefs", "ls", image.name, volume)
        show("imagefs", "verify", image.name)
        show("imagefs", "cp", image.name, f"{volume}/{file}", folder)
        mountpoint = folder / "mnt"
        mountpoint.mkdir()
        show("imagefs", "mount", image.name, mountpoint)
        try:
            show("ls", "-l", mountpoint, mountpoint / volume)
            show("sha256sum", mountpoint / volume / file, folder / Path(file).name)
            show("imagefs", "hash", image.name, f"{volume}/{file}")
            through_mount = (mountpoint / volume / file).read_bytes()
        finally:
            show("imagefs", "umount", mountpoint)
        made = folder / "made"
        show("imagefs", "backup", image.name, made, "--verify")
        show("imagefs", "backup", image.name, made)
        show("imagefs", "points", made)
        newest = sorted(made.iterdir())[-1]
        show("imagefs", "cat", newest, f"{volume}/{file}")
        restored = folder / "restored.raw"
        show("imagefs", "restore", newest, restored, "--verify")
        show(find_tool("sfdisk"), "--verify", restored)
        show("imagefs", "restore", newest, restored, "--delta", "--yes")
        show("imagefs", "convert", newest, folder / "disk.qcow2")
        show("qemu-img", "compare", "-f", "raw", "-F", "qcow2", restored, folder / "disk.qcow2")
        if through_mount != (folder / Path(file).name).read_bytes():
            sys.exit("the mount and the copy differ")
    print("\nThe file read through the mount and the copy are the same; nothing is mounted any more.")


if __name__ == "__main__":
    main()
