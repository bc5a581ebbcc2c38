"""Temporal convolutional network of one modality: causal, dilated, weight-normalised (Bai et al., arXiv 1803.01271)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class TemporalLevel(nn.Module):
    """Two causal convolutions of one dilation and a residual connection around them."""

    def __init__(self, in_channels: int, channels: int, *, kernel_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.past = (kernel_size - 1) * dilation  # frames before t that a convolution sees at t
        self.conv1 = weight_norm(nn.Conv1d(in_channels, channels, kernel_size, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(channels, channels, kernel_size, dilation=dilation))
        self.downsample: nn.Module = nn.Identity()
        if in_channels != channels:
            self.downsample = nn.Conv1d(in_channels, channels, kernel_size=1)
            # Published. The authors' code initialises the other convolutions likewise, but weight normalisation
            # undoes it.
            nn.init.xavier_uniform_(self.downsample.weight, gain=math.sqrt(2))
        self.activation = nn.LeakyReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B,in_channels,L) -> (B,channels,L)."""
        y = self.dropout(self.activation(self.conv1(F.pad(x, (self.past, 0)))))  # (B,channels,L)
        y = self.dropout(self.activation(self.conv2(F.pad(y, (self.past, 0)))))  # (B,channels,L)
        return torch.as_tensor(self.activation(y + self.downsample(x)))


class TemporalConvNet(nn.Module):
    """Levels with dilations 1, 2, 4, ...: the output at a frame depends on that frame and the past only.

    The receptive field of the published sizes (4 levels, kernel 5) is 1 + 2 * 4 * (1 + 2 + 4 + 8) = 121 frames.

    Args:
        in_channels: width of the input.
        channels: width of each level's output.
        kernel_size: taps of every convolution.
        dropout: probability of zeroing a value after each convolution.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], *, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            TemporalLevel(before, after, kernel_size=kernel_size, dilation=2**level, dropout=dropout)
            for level, (before, after) in enumerate(zip([in_channels, *channels], channels, strict=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B,L,in_channels) -> (B,L,channels[-1]), both float."""
        y = x.transpose(1, 2)  # (B,in_channels,L)
        for level in self.levels:
            y = level(y)
        return y.transpose(1, 2)
