"""Runs the command line by ``python -m lightning_backdoor``.

``python -m`` puts the working directory first on the import path. It is taken away before anything is imported that a
file there could replace, such as a ``json.py`` in the folder of an untrusted model. A folder named
``lightning_backdoor`` there would be run instead of this file; the command ``lightning-backdoor`` has no such gap.
"""

import os  # os and sys are part of the interpreter; __future__ is a file, and so not imported here
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109
    del sys.path[0]

from lightning_backdoor.cli import main

if __name__ == "__main__":
    sys.exit(main())
