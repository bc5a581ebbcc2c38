"""Files and folders that are whole or not there at all; what this program did not write is never replaced.

Everything is written into a hidden scratch folder beside its destination and renamed when it is complete. A scratch
folder belongs to one process, which holds a lock on a file in it. The operating system releases that lock when the
process dies, however it dies, so a later run knows which scratch folders are left over, and removes them.

:func:`replace_own` records what it writes in ``.written-by-rcma``, a list of checksums beside the file. A later run
replaces a file only if the list has it and its content is still what was written.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from preprocessing.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and folders are exchanged in two steps
    fcntl = None  # type: ignore[assignment]

WRITTEN = ".written-by-rcma"
"""Name of the list of files that this program wrote into a folder: a line each, SHA-256 and percent-encoded name."""

_SCRATCH, _LOCK = ".rcma-unfinished-", ".rcma-lock-"
"""How the names of scratch folders and of lock files begin."""
_HOLDER, _NEW, _OLD = "lock", "new", "old"
"""What is in a scratch folder: the file that its process holds a lock on, and folders for the new and the old state."""
_POLL_S = 0.1
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that have no locks."""
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""Errors of kernels and file systems that cannot exchange two names."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Constants of renameat2(2)."""


def refuse_existing(path: Path) -> None:
    """Raise InputError if anything is at ``path``, be it a link that leads nowhere."""
    if os.path.lexists(path):
        raise InputError(f"{path}: is there already; move it away, or give another place")


def refuse_foreign_folder(folder: Path, *, marker: str, is_known: Callable[[str], object], kind: str) -> None:
    """Raise InputError unless there is nothing at ``folder``, or a folder of one kind that holds nothing else.

    Args:
        folder: what would be replaced.
        marker: file that every folder of this kind has.
        is_known: tells whether this program may have written a file of that name. What :func:`replace_own` wrote into
            the folder is known already.
        kind: of the folder, for the message: ``feature folder``.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir() or not (folder / marker).is_file():
        what = "a link" if folder.is_symlink() else "a folder" if folder.is_dir() else "a file"
        raise InputError(
            f"{folder} is {what}, not a {kind} of this program, and is not replaced; move it, or give another place"
        )
    foreign = sorted(
        path.name
        for path in folder.iterdir()
        if not (is_known(path.name) and path.is_file() and not path.is_symlink())
        and path.name != WRITTEN
        and not path.name.startswith((_SCRATCH, _LOCK))
        and not _is_own(path)
    )
    if foreign:
        raise InputError(
            f"{folder} also holds {_some(foreign)}, not written by this program, and is not replaced; move that away"
        )


def refuse_to_overwrite(paths: Sequence[Path]) -> None:
    """Raise InputError, naming them, if there are files at ``paths`` that :func:`replace_own` did not write."""
    foreign = [str(path) for path in paths if os.path.lexists(path) and not _is_own(path)]
    if foreign:
        raise InputError(
            f"{_some(foreign)}: not written by this program, or changed since, and not overwritten; "
            "move it away, or give another place"
        )


@contextmanager
def whole_or_nothing(folder: Path, *, check: Callable[[Path], object] = refuse_existing) -> Iterator[Path]:
    """Give an empty folder to write into; it takes the place of ``folder`` only if nothing went wrong.

    An old folder is exchanged with the new one in one step: whenever this process is killed, one of them is there.

    Args:
        folder: where the new folder goes; missing folders above it are made.
        check: raises InputError if what is at ``folder`` may not be replaced. It is called first, and again just before
            the exchange.

    Raises:
        InputError: see ``check``.
        OSError: the folder cannot be written; its ``filename`` is ``folder``, not the name of the scratch folder.
    """
    check(folder)
    with _scratch(folder) as scratch:
        new = scratch / _NEW / folder.name
        new.mkdir(parents=True)
        yield new
        with lock(folder.parent, f"{folder.name}/"):
            check(folder)
            if os.path.lexists(folder):
                _exchange(new, folder, old=scratch / _OLD / folder.name)
            else:
                new.rename(folder)


@contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """Give the path of a file to write; it takes the place of ``path`` only if nothing went wrong.

    Missing folders above ``path`` are made. For files in folders that the caller knows to be its own; others are
    written with :func:`replace_own`.

    Raises:
        OSError: see :func:`whole_or_nothing`.
    """
    with _scratch(path) as scratch:
        new = scratch / _NEW / path.name
        new.parent.mkdir()
        yield new
        new.replace(path)


@contextmanager
def replace_own(path: Path) -> Iterator[Path]:
    """As :func:`replace_when_whole`, but replaces only a file that it wrote itself and nobody has changed since.

    Raises:
        InputError: something else is at ``path``.
        OSError: see :func:`whole_or_nothing`.
    """
    refuse_to_overwrite([path])
    with replace_when_whole(path) as new:
        yield new
        refuse_to_overwrite([path])
        # First the list, then the file: a process that is killed in between leaves nothing that is not known.
        _record(new, path.parent / WRITTEN)


@contextmanager
def lock(folder: Path, name: str, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until no other process, on any machine that shares ``folder``, holds the lock of that name, and hold it.

    A process that dies releases its locks. On a file system without locks, nothing is locked.

    Args:
        folder: exists.
        name: any text.
        on_wait: is called once if another process holds the lock.

    Raises:
        OSError: ``folder`` cannot be written.
    """
    # Not the name itself: with more letters, it could be too long for a file.
    path = folder / f"{_LOCK}{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}"
    held = None
    try:
        with _visible_names(folder):
            while (held := _try_lock(path)) is None:
                on_wait()
                on_wait = _no_op
                time.sleep(_POLL_S)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        if held is not None:
            # Removed while it is held: whoever waits sees that its file is gone, and makes a new one.
            path.unlink(missing_ok=True)
            os.close(held)


def remove_left_overs(folder: Path) -> None:
    """Remove scratch folders and locks of processes that died, and undo exchanges that they did not finish."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith((_SCRATCH, _LOCK)):
                # One that cannot be removed stays: it is hidden, and in nobody's way.
                with suppress(OSError):
                    _remove_left_over(path)


def _no_op() -> None:
    pass


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


@contextmanager
def _scratch(destination: Path) -> Iterator[Path]:
    """Give a scratch folder beside ``destination``, which goes when the block ends."""
    with _visible_names(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(destination.parent)
        folder, held = _make_scratch(destination.parent)
        try:
            yield folder
        finally:
            _remove_scratch(folder)
            if held is not None:
                os.close(held)


def _make_scratch(parent: Path) -> tuple[Path, int | None]:
    """A new scratch folder, and the descriptor of its lock; None on a file system without locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
        try:
            held = _try_lock(folder / _HOLDER)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return folder, None
            _remove_scratch(folder)
            raise
        if held is not None:
            return folder, held
        # Another process took the new folder for a left-over, before it was locked, and is removing it.


@contextmanager
def _visible_names(path: Path) -> Iterator[None]:
    """Give errors the name of ``path`` in place of a hidden one, or none at all, as writing to a full disk has."""
    try:
        yield
    except OSError as error:
        parts = () if error.filename is None else Path(os.fsdecode(error.filename)).parts
        named = error.filename is not None and not any(part.startswith((_SCRATCH, _LOCK)) for part in parts)
        if named or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _try_lock(path: Path, *, create: bool = True) -> int | None:
    """Lock a file: a descriptor, or None if another process holds it or has removed it.

    Raises:
        OSError: it cannot be opened, or has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
    locked = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in _HELD:
            raise
    finally:
        if not locked:
            os.close(descriptor)
    return descriptor if locked else None


def _remove_left_over(path: Path) -> None:
    if not path.is_dir():
        held = _try_lock(path, create=False)
        if held is not None:
            path.unlink()
            os.close(held)
        return
    if not (path / _HOLDER).exists():
        # Its process died before it locked it, or after it had removed the rest. No more than an empty folder goes.
        path.rmdir()
        return
    held = _try_lock(path / _HOLDER, create=False)
    if held is not None:
        for old in (path / _OLD).glob("*"):
            if not os.path.lexists(path.parent / old.name):
                old.rename(path.parent / old.name)
        _remove_scratch(path)
        os.close(held)


def _remove_scratch(folder: Path) -> None:
    """Remove a scratch folder, its lock last: killed in between, what is left is still known as a left-over."""
    for name in (_NEW, _OLD):
        shutil.rmtree(folder / name, ignore_errors=True)
    with suppress(OSError):
        (folder / _HOLDER).unlink(missing_ok=True)
        folder.rmdir()


def _exchange(new: Path, folder: Path, *, old: Path) -> None:
    """Put ``new`` in the place of ``folder``, which goes to ``new`` or, in two steps, to ``old``."""
    try:
        _rename_exchange(new, folder)
        return
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
    old.parent.mkdir()
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise


def _rename_exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step (Linux 3.15 and glibc 2.28; not on NFS)."""
    renameat2 = None if os.name == "nt" else getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def _is_own(path: Path) -> bool:
    """Whether :func:`replace_own` wrote the file, and it is still the same."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        lines = (path.parent / WRITTEN).read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    name = quote(os.fsencode(path.name))
    sums = {line.split("  ")[0] for line in lines if line.endswith(f"  {name}")}
    return bool(sums) and sha256(path) in sums


def _record(new: Path, written: Path) -> None:
    """Add a file to the list of what was written, by its content and the name that it will have."""
    line = f"{sha256(new)}  {quote(os.fsencode(new.name))}\n"
    with written.open("a+b") as file:
        file.seek(0)
        known = file.read()
        if line.encode() not in known:
            # After a disk was full, the last line may be half there.
            file.write(line.encode() if known.endswith(b"\n") or not known else f"\n{line}".encode())


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
