"""Getting data back: disks and partitions of images, or of other disks, written to devices and files."""
