"""File systems on a BlockReader."""
