"""The real samples: their facts are the vendor's or were read off the files by hand."""

import json
import random
from pathlib import Path

import pytest

import formats
from formats.errors import IncompleteSetError

SIZE = 128849018880


def test_the_full_sample_tells_what_it_holds(full_sample: Path) -> None:
    with formats.open_container(full_sample) as container:
        assert container.image_id == "2394E9AA621DDC3A"
        point = container.point
        assert point is not None
        assert (point.name, point.role, point.problem) == ("00-2024-07-10T10.42.16Z-full", "full", None)
        (disk,) = point.disks
        assert (disk.name, disk.size, disk.scheme, disk.sector_size) == ("disk4", SIZE, "gpt", 512)
        (partition,) = disk.partitions
        assert (partition.name, partition.label, partition.file_system) == ("p1", "Demo", "NTFS")
        assert (partition.offset, partition.size) == (16777216, 128830144512)
        assert (partition.stored_blocks(), partition.block_count) == (1608, 1965792)


def test_every_block_of_the_full_sample_is_good(full_sample: Path) -> None:
    with formats.open_container(full_sample) as container:
        assert container.point is not None
        results = [check.run() for check in container.point.checks()]
        assert sum(result.blocks for result in results) == 1608
        assert not [bad for result in results for bad in result.bad]


def test_whole_disk_reads_agree_with_the_partition(full_sample: Path) -> None:
    with formats.open_container(full_sample) as container:
        assert container.point is not None
        disk = container.point.disks[0]
        whole, part = disk.reader(), disk.partitions[0].reader()
        assert whole.size == SIZE
        data = [extent for extent in part.extents() if extent.is_data]
        assert sum(extent.length for extent in data) == 1608 * 65536
        rng = random.Random(1)
        for _ in range(200):
            extent = rng.choice(data)
            offset = rng.randrange(extent.offset, extent.end)
            length = rng.randrange(1, min(300_000, part.size - offset))
            assert part.read_at(offset, length) == whole.read_at(16777216 + offset, length)


def test_the_document_is_kept_byte_for_byte(full_sample: Path, delta_sample: Path) -> None:
    for path in (full_sample, delta_sample):
        with formats.open_container(path) as container:
            document = container.points[0].image.document.json  # type: ignore[attr-defined]
            text = json.dumps(document, indent=4, sort_keys=True, ensure_ascii=False) + "\n"
            assert '"macrium_reflect": {' in text
            assert json.loads(text) == document


def test_a_delta_without_its_base_says_what_is_missing(delta_sample: Path) -> None:
    with formats.open_container(delta_sample) as container:
        point = container.point
        assert point is not None
        assert point.role == "inc"
        assert list(point.missing_files) == [0]
        assert isinstance(point.problem, IncompleteSetError)
        assert point.problem.exit_code == 4
        assert "file number 0" in str(point.problem)
        assert str(delta_sample.parent) in str(point.problem)
        (disk,) = point.disks
        # The document's disk_size, 534643200, is the geometry's product: the partition ends behind it.
        assert disk.size == 536870912
        assert disk.partitions[0].stored_blocks() == 48
        with pytest.raises(IncompleteSetError):
            disk.partitions[0].reader()
