"""Locks on files and folders, held by one process at a time and released when it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lightning_backdoor.errors import InputError


def lock(file: IO[Any], wait: bool = True, field: str = "output") -> bool:
    """Locks an open file until it is closed; with ``wait=False``, returns False if another process holds the lock.

    Args:
        file: the open file.
        wait: whether to wait for the lock.
        field: the option that names the file, for the message.

    Raises:
        InputError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        problem = f"{Path(file.name).parent} lies on a file system without locks ({error})"
        raise InputError(field, problem, "give a folder on another one") from None
    return True


@contextmanager
def locked_folder(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Locks a folder within the block; yields whether it is locked.

    Args:
        folder: the folder. It may be renamed or deleted meanwhile.
        wait: whether to wait while another process holds the lock.

    Yields:
        False if another process holds the lock, or the folder cannot be locked.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except OSError:
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)
