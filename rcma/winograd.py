"""3x3 convolutions with a fifth to a quarter of the multiplications (Lavin and Gray, arXiv 1509.09308).

In one dimension, m outputs y_i = sum_j d_(i+j) g_j are had from a = m + 2 inputs d with a products instead of 3 m:

    y = A^T [(G g) * (B^T d)]       A^T (m,a)   G (a,3)   B^T (a,a)

This is a product of polynomials, which is known from its values at a points, turned round (Cook and Toom): with rows
(1, p, p^2, ...) for each point p, V_n of n columns, A = V_m, G = V_3 and B = V_a^-1. In two dimensions the matrices act
on rows and on columns; the products of all channels and images at one of the a x a places are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
"""Where polynomials are evaluated, beside infinity; near 1, because powers of them cost digits."""

Place = tuple[slice, slice]
"""Rows and columns of a tile in its map."""
Finish = Callable[[Tensor, Place], Tensor]
"""What follows a convolution, done while a tile is in the cache: its values (h,w,N,K), free to be overwritten, and its
place -> what takes their place."""


class WinogradConvolution:
    """A convolution with stride 1 and a border of zeros, for inference on the CPU; exact but for rounding.

    Args:
        weight: (K,C,3,3) float32.
        tile: rows and columns of outputs that are computed at once, each from 1 to 6: the larger, the fewer products
            and the more rounding. Best where they divide the map.
    """

    def __init__(self, weight: Tensor, *, tile: tuple[int, int]) -> None:
        """Transform the weights."""
        self.tile = tile
        (at_rows, g_rows, bt_rows), (at_columns, g_columns, bt_columns) = (cook_toom(m) for m in tile)
        self._to_rows, self._to_columns = _float32(bt_rows), _float32(bt_columns)
        self._from_rows, self._from_columns = _float32(at_rows), _float32(at_columns)
        n_out, n_in = weight.shape[:2]
        both = _float32(np.kron(g_rows, g_columns))  # (a*b,9)
        self._weight = (both @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, n_in, n_out)  # (a*b,C,K)

    def __call__(self, maps: Tensor, finish: Finish) -> Tensor:
        """Maps (H,W,N,C) of N images, pixel after pixel, -> (H,W,N,K)."""
        height, width, n, n_in = maps.shape
        n_out = self._weight.shape[-1]
        (h, w), (a, b) = self.tile, (len(self._to_rows), len(self._to_columns))
        padded = _with_border(maps, height + -height % h, width + -width % w)
        to_columns, from_columns = self._to_columns.expand(a, b, b), self._from_columns.expand(h, w, b)
        tiles = [(top, left) for top in range(0, height, h) for left in range(0, width, w)]
        # Few, so that they stay in the cache, but enough for the products not to wait for the weights.
        at_once = min(math.ceil(n_in / n), len(tiles))
        # Written again and again; a last group that has fewer tiles leaves part of them unused.
        rows = maps.new_empty(a, padded.shape[1], n * n_in)
        transformed, products = maps.new_empty(a, b, at_once, n * n_in), maps.new_empty(a * b, at_once * n, n_out)
        back, values = maps.new_empty(h, b, at_once, n * n_out), maps.new_empty(h, w, n * n_out)
        output = maps.new_empty(height, width, n, n_out)
        for first in range(0, len(tiles), at_once):
            group = tiles[first : first + at_once]
            for k, (top, left) in enumerate(group):
                if left == 0:
                    torch.mm(self._to_rows, padded[top : top + a].flatten(1), out=rows.flatten(1))
                torch.bmm(to_columns, rows[:, left : left + b], out=transformed[:, :, k])
            torch.bmm(transformed.view(a * b, -1, n_in), self._weight, out=products)
            torch.mm(self._from_rows, products.view(a, -1), out=back.flatten(1))
            for k, (top, left) in enumerate(group):
                torch.bmm(from_columns, back[:, :, k], out=values)
                place = slice(top, top + h), slice(left, left + w)
                inside = values.view(h, w, n, n_out)[: height - top, : width - left]
                output[place] = finish(inside, place)
        return output


def cook_toom(m: int) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """A^T (m,m+2), G (m+2,3) and B^T (m+2,m+2), float64, for m outputs of 3 taps, m from 1 to 6."""
    points = np.array(POINTS[: m + 1])

    def powers(n: int) -> NDArray[np.floating[Any]]:
        at_infinity = np.eye(n)[-1:]  # there, the highest power alone counts
        return np.concatenate([points[:, None] ** np.arange(n), at_infinity])

    return powers(m).T, powers(3), np.linalg.inv(powers(m + 2)).T


def _with_border(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (H,W,N,C) -> (height+2,width+2,N,C): zeros around, more of them below and on the right if there is room."""
    bottom, right = maps.shape[0] + 1, maps.shape[1] + 1
    padded = maps.new_empty(height + 2, width + 2, *maps.shape[2:])
    padded[1:bottom, 1:right] = maps
    # Quicker than F.pad, which sets everything to zero first.
    for border in (padded[0], padded[bottom:], padded[1:bottom, 0], padded[1:bottom, right:]):
        border.zero_()
    return padded


def _float32(matrix: NDArray[np.floating[Any]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix, np.float32))
