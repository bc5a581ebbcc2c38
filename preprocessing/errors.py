"""The exception for users, and errors of the operating system in one line."""

from __future__ import annotations

import errno
import os


class InputError(Exception):
    """An input cannot be used.

    The message is one line that names the file or key, what is wrong and what would be right. Commands print it without
    a traceback and continue with the other inputs; see :func:`preprocessing.console.run_command`.
    """


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exhausted quota, and a file that may not grow."""
_OUTPUT_LOST = (*DISK_FULL, errno.EPIPE, errno.EIO, errno.EBADF)


def describe_os_error(error: OSError) -> str:
    """Describe an error of the operating system in one line, and what to do about it."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None and error.errno in _OUTPUT_LOST:
        # The error has no name only if the file is a standard stream.
        return f"standard output: {reason}; not all of the output was written"
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{where}{reason}" + ("; make room and run the command again" if error.errno in DISK_FULL else "")
