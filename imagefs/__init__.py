"""Disk-image backups shown as disks, partitions and files."""
