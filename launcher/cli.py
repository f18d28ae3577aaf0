"""The `launcher` command."""

import sys


def main() -> int:
    """Run the command line; return the exit status."""
    return 2


if __name__ == "__main__":
    sys.exit(main())
