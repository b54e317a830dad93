"""Runs the command line by ``python -m lightning_backdoor``."""

import sys

from lightning_backdoor.cli import main

if __name__ == "__main__":
    sys.exit(main())
