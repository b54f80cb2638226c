"""Partition tables: MBR, EBR chains and GPT, read and built."""
