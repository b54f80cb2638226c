"""A sysfs made by hand: disks, partitions and what is stacked upon them, of any machine."""

from __future__ import annotations

from pathlib import Path


class Sysfs:
    """A tree as the kernel has it: every device's folder, and links to it by name and number."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.minor = 0
        for name in ("block", "dev/block", "class/block", "fs"):
            (root / name).mkdir(parents=True)

    def add(self, name: str, parent: str = "", **attributes: str | bytes) -> Path:
        folder = self.root / "devices" / parent / name
        folder.mkdir(parents=True)
        self.minor += 1
        number = f"250:{self.minor}"
        for key, value in {"dev": number + "\n", "size": "2048\n", **attributes}.items():
            path = folder / key.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value if isinstance(value, bytes) else value.encode())
        (self.root / "dev/block" / number).symlink_to(folder)
        if not parent:
            (self.root / "block" / name).symlink_to(folder)
        return folder

    def stack(self, lower: Path, upper: Path) -> None:
        """Make one device of another, as dm and md do."""
        for folder, name, other in ((lower, "holders", upper), (upper, "slaves", lower)):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / other.name).symlink_to(other)
