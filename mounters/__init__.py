"""How an operating system is shown a tree. Knows the Tree contract and nothing of images."""
