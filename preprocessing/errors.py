"""The one exception that is meant for the person at the keyboard, and the operating system's errors in one line."""

from __future__ import annotations

import errno
import os


class InputError(Exception):
    """Something given from outside cannot be used.

    The message is one line that names the file or key, says what is wrong and what would be right. Commands print it
    without a traceback and continue with the other inputs; see :func:`preprocessing.console.run_command`.
    """


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exhausted quota, and a file that may not grow."""
_OUTPUT_LOST = (*DISK_FULL, errno.EPIPE, errno.EIO, errno.EBADF)


def describe_os_error(error: OSError) -> str:
    """One line on what the operating system refused, and what to do about it."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None and error.errno in _OUTPUT_LOST:
        # Files are named where they are written.
        return f"standard output: {reason}; not all of the output was written"
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{where}{reason}" + ("; make room and run the command again" if error.errno in DISK_FULL else "")
