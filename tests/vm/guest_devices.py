"""What the machine's disks say of themselves."""

from dataclasses import replace
from pathlib import Path

import pytest

from imagefs.imaging.sources import Identity, open_source

DISKS = [
    ("/dev/vda", Identity("", "", "", "", "IMAGEFS-VIRTIO"), 512 << 20),
    ("/dev/nvme0n1", Identity("QEMU NVMe Ctrl", "", "QEMU NVMe Ctrl", "", "IMAGEFS-NVME"), 96 << 20),
    ("/dev/sda", Identity("ACME Tortoise 1.2", "ACME", "Tortoise", "1.2", "IMAGEFS-SCSI"), 96 << 20),
]


@pytest.mark.parametrize(("node", "identity", "size"), DISKS)
def test_hardware(node: str, identity: Identity, size: int) -> None:
    with open_source(Path(node)) as source:
        (disk,) = source.disks
    found = disk.identity
    if "nvme" in node:  # its revision is QEMU's own version
        assert found.revision
        assert found.description == f"{found.product} {found.revision}"
        found = replace(found, description=found.product, revision="")
    assert (found, disk.size) == (identity, size)
    assert (disk.sector_size, disk.removable) == (512, False)
