from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rcma.fast_cpu.winograd import WinogradConvolution, cook_toom


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6])
def test_m_outputs_of_three_taps_from_m_plus_two_products(m: int):
    random = np.random.default_rng(m)
    d, g = random.normal(size=m + 2), random.normal(size=3)
    at, at_weights, bt = cook_toom(m)
    assert at.shape == (m, m + 2) and at_weights.shape == (m + 2, 3) and bt.shape == (m + 2, m + 2)
    np.testing.assert_allclose(at @ ((at_weights @ g) * (bt @ d)), np.correlate(d, g, mode="valid"), atol=1e-11)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6])
def test_with_a_stride_of_two_from_two_m_plus_one(m: int):
    random = np.random.default_rng(m)
    d, g = random.normal(size=2 * m + 1), random.normal(size=3)
    at, at_weights, bt = cook_toom(m, stride=2)
    assert at.shape == (m, 2 * m + 1) and at_weights.shape == (2 * m + 1, 3) and bt.shape == (2 * m + 1, 2 * m + 1)
    np.testing.assert_allclose(at @ ((at_weights @ g) * (bt @ d)), np.correlate(d, g, mode="valid")[::2], atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (4, 4), (5, 5), (6, 4), (6, 6)])
@pytest.mark.parametrize(
    ("n", "channels", "height", "width"),
    [(1, (1, 1), 1, 1), (3, (5, 7), 10, 12), (2, (16, 3), 7, 13), (1, (3, 8), 5, 5)],
)
def test_the_same_as_a_convolution(
    tile: tuple[int, int], stride: int, n: int, channels: tuple[int, int], height: int, width: int
):
    torch.manual_seed(height)
    images, weight = torch.randn(n, channels[0], height, width), torch.randn(channels[1], channels[0], 3, 3)
    maps = images.permute(2, 3, 0, 1).contiguous()
    before = maps.clone()
    added = torch.randn(math.ceil(height / stride), math.ceil(width / stride), 1, channels[1])
    bias = torch.randn(channels[1]) if n > 1 else None
    output = WinogradConvolution(weight, bias, stride=stride, tile=tile)(
        maps, lambda values, place, into: torch.add(values, added[place], out=into)
    )
    exact = F.conv2d(images.double(), weight.double(), stride=stride, padding=1) + added.permute(2, 3, 0, 1)
    if bias is not None:
        exact += bias[:, None, None]
    assert output.shape == (*added.shape[:2], n, channels[1]) and output.dtype == torch.float32
    error = (output.permute(2, 3, 0, 1) - exact).abs().max()
    assert error < 3e-5 * weight[0].numel() ** 0.5
    torch.testing.assert_close(maps, before, rtol=0, atol=0)


def test_each_tile_is_finished_once_at_its_place():
    seen = torch.zeros(7, 10)

    def finish(values: torch.Tensor, place: tuple[slice, slice], into: torch.Tensor) -> None:
        assert values.shape[:2] == seen[place].shape
        assert values.shape == into.shape
        seen[place] += 1
        into.fill_(2.0)

    output = WinogradConvolution(torch.ones(2, 3, 3, 3), tile=(4, 3))(torch.ones(7, 10, 2, 3), finish)
    assert (seen == 1).all() and (output == 2).all()
