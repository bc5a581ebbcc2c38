"""3x3 convolutions with a fifth to a half of the multiplications (Lavin and Gray, arXiv 1509.09308).

In one dimension, m outputs y_i = sum_j d_(i+j) g_j are computed from a = m + 2 inputs d with a products instead of 3 m:

    y = A^T [(G g) * (B^T d)]       A^T (m,a)   G (a,3)   B^T (a,a)

This is the transpose of a product of polynomials, which is known from its values at a points (Cook and Toom): with rows
(1, p, p^2, ...) for each point p, V_n of n columns, A = V_m, G = V_3 and B = V_a^-1. With a stride of 2, the outer taps
meet every other input and the middle one those between: m + 1 products for the first as above, m for the second. In two
dimensions the matrices act on rows and on columns; the products of all channels and images at one of the a x a places
are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

POINTS = (1.0, 0.0, -1.0, 2.0, -2.0, 0.5, -0.5)
"""Points of evaluation beside infinity; near 1, because powers of other numbers cost precision. All powers of the first
are 1, so a bias that is added to its product is added to all outputs."""

Place = tuple[slice, slice]
"""Rows and columns of a tile in its map."""
Finish = Callable[[Tensor, Place, Tensor], object]
"""Follows a convolution while a tile is in the cache: takes its values (h,w,N,K), which may be overwritten, its place,
and the tensor of the same shape for the result."""


class WinogradConvolution:
    """A convolution with zero padding, for inference on the CPU; exact except for rounding.

    Args:
        weight: (K,C,3,3) float32.
        bias: (K,), optional.
        stride: 1 or 2.
        tile: rows and columns of outputs computed at once, 1 to 6 each, preferably divisors of the map's; a larger tile
            needs fewer products and has more rounding error.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, tile: tuple[int, int]) -> None:
        self.tile, self.stride = tile, stride
        (at_rows, g_rows, bt_rows), (at_columns, g_columns, bt_columns) = (cook_toom(m, stride=stride) for m in tile)
        self._to_rows, self._to_columns = _float32(bt_rows), _float32(bt_columns)
        self._from_rows, self._from_columns = _float32(at_rows), _float32(at_columns)
        n_out, n_in = weight.shape[:2]
        both = _float32(np.kron(g_rows, g_columns))  # (a*b,9)
        self._weight = (both @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, n_in, n_out)  # (a*b,C,K)
        self._bias = bias

    def __call__(self, maps: Tensor, finish: Finish) -> Tensor:
        """Maps (H,W,N,C) of N images -> (H/stride,W/stride,N,K), rounded up."""
        n, n_in = maps.shape[2:]
        n_out = self._weight.shape[-1]
        height, width = (-(-size // self.stride) for size in maps.shape[:2])
        (h, w), (a, b) = self.tile, (len(self._to_rows), len(self._to_columns))
        to_columns, from_columns = self._to_columns.expand(a, b, b), self._from_columns.expand(h, w, b)
        tiles = [(top, left) for top in range(0, height, h) for left in range(0, width, w)]
        # Few enough to stay in the cache, enough for the products not to wait for the weights.
        at_once = min(math.ceil(n_in / n), len(tiles))
        # Buffers for all groups of tiles; a smaller last group leaves part of them unused.
        rows = maps.new_empty(a, maps.shape[1], n * n_in)
        transformed, products = maps.new_empty(a, b, at_once, n * n_in), maps.new_empty(a * b, at_once * n, n_out)
        back, values = maps.new_empty(h, b, at_once, n * n_out), maps.new_empty(h, w, n * n_out)
        output = maps.new_empty(height, width, n, n_out)
        for first in range(0, len(tiles), at_once):
            group = tiles[first : first + at_once]
            for k, (top, left) in enumerate(group):
                if left == 0:
                    there, used = _inside(top * self.stride - 1, a, maps.shape[0])
                    torch.mm(self._to_rows[:, used], maps[there].flatten(1), out=rows.flatten(1))
                there, used = _inside(left * self.stride - 1, b, maps.shape[1])
                torch.bmm(to_columns[:, :, used], rows[:, there], out=transformed[:, :, k])
            torch.bmm(transformed.view(a * b, -1, n_in), self._weight, out=products)
            if self._bias is not None:
                products[0] += self._bias
            torch.mm(self._from_rows, products.view(a, -1), out=back.flatten(1))
            for k, (top, left) in enumerate(group):
                torch.bmm(from_columns, back[:, :, k], out=values)
                place = slice(top, min(top + h, height)), slice(left, min(left + w, width))
                into = output[place]
                finish(values.view(h, w, n, n_out)[: into.shape[0], : into.shape[1]], place, into)
        return output


Matrix = NDArray[np.floating[Any]]


def cook_toom(m: int, *, stride: int = 1) -> tuple[Matrix, Matrix, Matrix]:
    """A^T (m,a), G (a,3) and B^T (a,a), float64, for m outputs of 3 taps.

    Args:
        m: from 1 to 6.
        stride: 1: a is m + 2; or 2: a is 2 m + 1.
    """
    if stride == 1:
        return _of_taps(m, 3)
    n_outer = m + 1
    at, g, bt = np.zeros((m, n_outer + m)), np.zeros((n_outer + m, 3)), np.zeros((n_outer + m, n_outer + m))
    at[:, :n_outer], g[:n_outer, ::2], bt[:n_outer, ::2] = _of_taps(m, 2)
    at[:, n_outer:], g[n_outer:, 1], bt[n_outer:, 1::2] = np.eye(m), 1.0, np.eye(m)
    return at, g, bt


def _of_taps(m: int, n_taps: int) -> tuple[Matrix, Matrix, Matrix]:
    a = m + n_taps - 1
    points = np.array(POINTS[: a - 1])

    def powers(n: int) -> Matrix:
        at_infinity = np.eye(n)[-1:]  # there, the highest power alone counts
        return np.concatenate([points[:, None] ** np.arange(n), at_infinity])

    return powers(m).T, powers(n_taps), np.linalg.inv(powers(a)).T


def _inside(first: int, length: int, size: int) -> tuple[slice, slice]:
    """The part of the pixels ``first`` to ``first + length`` inside a map of this size: in the map, and in the range.

    The pixels outside are zero, and need no multiplication.
    """
    start, stop = max(first, 0), min(first + length, size)
    return slice(start, stop), slice(start - first, stop - first)


def _float32(matrix: Matrix) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix, np.float32))
