"""What is told of a machine's disks. Offsets and sizes are bytes; what is not known is "", 0 or ()."""

from dataclasses import asdict, dataclass
from typing import Any

NOT_KNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Encryption:
    """Whether a volume is encrypted.

    ``state`` is "off", "locked", "unlocked", "suspended" (its key lies open on the disk), "encrypting",
    "decrypting", or "not known", which often means that more rights are needed.
    """

    kind: str  # "BitLocker", "LUKS", "" for none or not known
    state: str


OFF = Encryption("", "off")
UNKNOWN_STATE = Encryption("", NOT_KNOWN)


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, or the volume that a disk without a table is."""

    number: int  # as images number it: its table's slot, logical ones from 5; 1 without a table
    offset: int
    size: int
    path: str  # /dev/sda1, a volume of Windows; "" for none
    type: str  # as the table has it: a GUID, or two hex digits
    name: str  # a GPT's
    id: str  # a GPT's
    file_system: str  # "NTFS", "FAT32", "ext4", …; what takes it whole: "BitLocker", "LUKS", "LVM", "swap", …
    label: str
    mount_points: tuple[str, ...]  # /home, C:\; letters first
    encryption: Encryption
    problem: str = ""  # why more is not known


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk. Extended partitions are left out: the logical ones are theirs."""

    number: int
    path: str  # /dev/sda, \\.\PhysicalDrive0
    model: str
    vendor: str
    revision: str
    serial: str
    size: int  # 0: no medium
    scheme: str  # "gpt", "mbr", "" for none or not known
    id: str  # of the table: a GUID, or eight hex digits
    sector_size: int  # logical
    physical_sector_size: int
    bus: str  # "usb", "nvme", "sata", …, as the system calls it
    removable: bool
    partitions: tuple[Partition, ...]  # in the order of their numbers
    problem: str = ""  # why more is not known: no medium, no rights, a damaged table

    @property
    def name(self) -> str:
        """Its name as a source: "disk0"."""
        return f"disk{self.number}"


@dataclass(frozen=True, slots=True)
class LooseVolume:
    """A volume of Windows that is no partition of one disk: it spans several, or is dynamic."""

    path: str
    disks: tuple[int, ...]  # their numbers
    size: int  # on all of them
    file_system: str
    label: str
    mount_points: tuple[str, ...]
    encryption: Encryption
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DiskList:
    """All disks, ascending by number, and the volumes that are no partitions."""

    disks: tuple[Disk, ...]
    volumes: tuple[LooseVolume, ...] = ()


def document(found: DiskList) -> dict[str, Any]:
    """Return the JSON document: the fields of the classes here, and the names that sources have."""
    whole = asdict(found)
    for disk in whole["disks"]:
        disk["name"] = f"disk{disk['number']}"
        for part in disk["partitions"]:
            part["source"] = f"{disk['name']}/p{part['number']}"
    return whole
