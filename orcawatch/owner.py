"""Whose a file is: what root makes in a folder of the service's must not keep the service out."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG


def give_to_owner(path: Path) -> None:
    """Give a file or folder of root's to the owner of the folder that it is in; where this is root, and the disk can.

    No link is followed, and a file that has other names stays: its folder belongs to somebody else.

    Raises
    ------
    OSError : it cannot be opened.
    """
    if os.geteuid() != 0:
        return
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found, owner = os.fstat(handle), path.parent.stat()
        if found.st_uid == 0 and (S_ISDIR(found.st_mode) or (S_ISREG(found.st_mode) and found.st_nlink == 1)):
            with suppress(PermissionError):
                os.fchown(handle, owner.st_uid, owner.st_gid)
    finally:
        os.close(handle)
