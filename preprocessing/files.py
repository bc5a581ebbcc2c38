"""Files and folders that are complete or absent; files that this program did not write are never replaced.

Everything is written into a hidden scratch folder beside its destination and renamed when it is complete. The process
that writes holds a lock, which the operating system releases when the process dies, however it dies. So a later run
recognises abandoned scratch folders, and removes them.

:func:`replace_own` records what it writes in ``.written-by-rcma``, a list of checksums beside the file. A later run
replaces a file only if the list has it and its content is unchanged.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from preprocessing.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

WRITTEN = ".written-by-rcma"
"""Name of the list of files that this program wrote into a folder: a line each, SHA-256 and percent-encoded name."""

_SCRATCH, _LOCK = ".rcma-unfinished-", ".rcma-lock-"
"""Prefixes of scratch folders and lock files."""
_NEW, _OLD = "new", "old"
"""Folders in a scratch folder, for the new and the old state of its destination."""
_POLL_S = 0.1
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that have no locks."""


def refuse_existing(path: Path) -> None:
    """Raise InputError if anything is at ``path``, even a broken link."""
    if os.path.lexists(path):
        raise InputError(f"{path}: already exists; move it away, or give another place")


def refuse_foreign_folder(folder: Path, *, marker: str, is_known: Callable[[str], object], kind: str) -> None:
    """Raise InputError if there is anything at ``folder`` but a folder of one kind that holds nothing else.

    Args:
        folder: what would be replaced.
        marker: file that every folder of this kind has.
        is_known: whether this program may have written a file of that name. Files that :func:`replace_own` wrote need
            not be known.
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
    """Give an empty folder to write into; it takes the place of ``folder`` if the block raises no exception.

    If this process is killed between the two renames, the next run puts the old folder back.

    Args:
        folder: where the new folder goes; missing folders above it are made.
        check: raises InputError if what is at ``folder`` may not be replaced. It is called before the block, and again
            just before the folder is replaced.

    Raises:
        InputError: see ``check``.
        OSError: the folder cannot be written; its ``filename`` is ``folder``, not the name of the scratch folder.
    """
    check(folder)
    with _scratch(folder) as scratch:
        new, old = scratch / _NEW / folder.name, scratch / _OLD / folder.name
        new.mkdir(parents=True)
        yield new
        with lock(folder.parent, f"{folder.name}/"):
            check(folder)
            if os.path.lexists(folder):
                old.parent.mkdir()
                folder.rename(old)
            new.rename(folder)


@contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """Give the path of a file to write; it takes the place of ``path`` if the block raises no exception.

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
    path, held, waited = _lock_path(folder, name), None, False
    try:
        with _visible_names(folder):
            while (held := _try_lock(path)) is None:
                if not waited:
                    on_wait()
                waited = True
                time.sleep(_POLL_S)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        if held is not None:
            _unlock(path, held)


def remove_left_overs(folder: Path) -> None:
    """Remove scratch folders and locks of processes that died, and put back folders that they were replacing."""
    with suppress(OSError):
        for path in folder.iterdir():
            # One that cannot be removed stays: it is hidden.
            with suppress(OSError):
                if path.name.startswith(_SCRATCH):
                    path_of_lock = _lock_path(folder, path.name)
                    if (held := _try_lock(path_of_lock)) is not None:
                        _remove_scratch(path)
                        _unlock(path_of_lock, held)
                elif path.name.startswith(_LOCK) and (held := _try_lock(path, create=False)) is not None:
                    _unlock(path, held)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


@contextmanager
def _scratch(destination: Path) -> Iterator[Path]:
    """Give a scratch folder beside ``destination``, which is removed when the block ends."""
    parent = destination.parent
    with _visible_names(destination):
        parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(parent)
        folder = parent / f"{_SCRATCH}{secrets.token_hex(8)}"
        with lock(parent, folder.name):
            folder.mkdir()
            try:
                yield folder
            finally:
                _remove_scratch(folder)


def _remove_scratch(folder: Path) -> None:
    for old in (folder / _OLD).glob("*"):
        if not os.path.lexists(folder.parent / old.name):
            old.rename(folder.parent / old.name)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _visible_names(path: Path) -> Iterator[None]:
    """Give errors the name of ``path`` in place of a hidden one, or of none, as writing to a full disk has."""
    try:
        yield
    except OSError as error:
        parts = () if error.filename is None else Path(os.fsdecode(error.filename)).parts
        named = error.filename is not None and not any(part.startswith((_SCRATCH, _LOCK)) for part in parts)
        if named or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _lock_path(folder: Path, name: str) -> Path:
    # Not the name itself, which could be too long for a file.
    return folder / f"{_LOCK}{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}"


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


def _unlock(path: Path, held: int) -> None:
    # Removed while it is held: whoever waits sees that its file is gone, and makes a new one.
    path.unlink(missing_ok=True)
    os.close(held)


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
            # The last line may be incomplete if the disk was full.
            file.write(line.encode() if known.endswith(b"\n") or not known else f"\n{line}".encode())


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
