"""``python -m imagefs``: the command line."""

from imagefs.cli import main

if __name__ == "__main__":
    main()
