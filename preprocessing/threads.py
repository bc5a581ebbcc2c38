"""How many cores PyTorch uses in one thread, without a change for the other threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

_LOCK = Lock()


@contextmanager
def one_core() -> Iterator[None]:
    """Let PyTorch use one core in this thread while the block runs."""
    import torch

    before = torch.get_num_threads()
    use_cores(1)
    try:
        yield
    finally:
        use_cores(before)


def use_cores(n: int) -> None:
    """Let PyTorch use ``n`` cores in this thread from now on.

    ``torch.set_num_threads`` does that too, but every thread that starts later inherits its number. Here, such threads
    keep the number that they would have had.
    """
    import torch

    with _LOCK, ThreadPoolExecutor(1) as other:
        inherited = other.submit(torch.get_num_threads).result()
        torch.set_num_threads(n)
        other.submit(torch.set_num_threads, inherited).result()
