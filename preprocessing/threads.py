"""Sets how many cores PyTorch uses in one thread, without changing other threads.

``torch.set_num_threads`` affects the thread that calls it, and every thread that uses PyTorch for the first time
afterwards. Here, such threads keep the number that they would have had.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

_LOCK = Lock()
"""Held while new threads would inherit the number of one thread."""


def n_cores() -> int:
    """How many cores PyTorch uses in this thread; in a new thread, this fixes the number."""
    import torch

    with _LOCK:
        return torch.get_num_threads()


def use_cores(n: int) -> None:
    """Let PyTorch use ``n`` cores in this thread from now on."""
    import torch

    with _LOCK, ThreadPoolExecutor(1) as other:
        torch.get_num_threads()  # fixes it: otherwise the first operation would set the inherited number again
        inherited = other.submit(torch.get_num_threads).result()
        torch.set_num_threads(n)
        other.submit(torch.set_num_threads, inherited).result()


@contextmanager
def one_core() -> Iterator[None]:
    """Let PyTorch use one core in this thread while the block runs."""
    before = n_cores()
    use_cores(1)
    try:
        yield
    finally:
        use_cores(before)
