"""The temporal convolutional network: what it sees, and that it computes what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcma.model.tcn import TemporalConvNet


def network(in_channels: int = 3, channels: tuple[int, ...] = (4, 4, 4, 4), dropout: float = 0.0) -> TemporalConvNet:
    torch.manual_seed(0)
    return TemporalConvNet(in_channels, channels, kernel_size=5, dropout=dropout).double()


def influence_of_frame(net: TemporalConvNet, frame: int, length: int) -> np.ndarray:
    """Indices of output frames that depend on one input frame."""
    x = torch.randn((1, length, 3), dtype=torch.float64)
    changed = x.clone()
    changed[0, frame] += 10.0
    difference = (net(changed) - net(x)).detach()[0].abs().amax(dim=-1)
    return np.flatnonzero(difference.numpy())


def test_receptive_field_is_121_frames_of_past() -> None:
    touched = influence_of_frame(network(), frame=10, length=200)
    assert touched[0] == 10, "an input frame changes nothing before itself"
    assert touched[-1] == 10 + 120


def test_fewer_levels_see_less() -> None:
    assert influence_of_frame(network(channels=(4, 4)), frame=10, length=60)[-1] == 10 + 2 * 4 * (1 + 2)


def slow_convolution(x: np.ndarray, g: np.ndarray, v: np.ndarray, bias: np.ndarray, dilation: int) -> np.ndarray:
    """Weight-normalised causal convolution of x (L,C), one output value at a time."""
    out = np.zeros((len(x), len(v)))
    for channel, kernel in enumerate(v):  # kernel (C,K)
        weight = g[channel] * kernel / np.sqrt((kernel**2).sum())
        for t in range(len(x)):
            for tap in range(kernel.shape[1]):
                source = t - (kernel.shape[1] - 1 - tap) * dilation
                if source >= 0:
                    out[t, channel] += weight[:, tap] @ x[source]
            out[t, channel] += bias[channel]
    return out


def leaky_relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.01 * x)


def test_equals_a_slow_transcription() -> None:
    net = network(channels=(4, 4, 6))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn((2, 17, 3), dtype=torch.float64)
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    for window, out in zip(x.numpy(), net(x).detach().numpy(), strict=True):
        expected = window
        for level in range(3):
            y = expected
            for conv in ("conv1", "conv2"):
                p = f"levels.{level}.{conv}."
                g = weights[p + "parametrizations.weight.original0"][:, 0, 0]
                v = weights[p + "parametrizations.weight.original1"]
                y = leaky_relu(slow_convolution(y, g, v, weights[p + "bias"], 2**level))
            down = f"levels.{level}.downsample."
            if down + "weight" in weights:
                expected = expected @ weights[down + "weight"][:, :, 0].T + weights[down + "bias"]
            expected = leaky_relu(y + expected)
        np.testing.assert_allclose(out, expected, atol=1e-12 * abs(expected).max())


def test_residual_is_convolved_only_where_widths_differ() -> None:
    names = set(network(channels=(4, 4, 6)).state_dict())
    assert {n.split(".")[1] for n in names if "downsample" in n} == {"0", "2"}


def test_published_sizes() -> None:
    def millions(in_channels: int, width: int) -> float:
        net = TemporalConvNet(in_channels, (width,) * 4, kernel_size=5, dropout=0.1)
        return sum(p.numel() for p in net.parameters()) / 1e6

    assert millions(512, 512) == pytest.approx(10.49, abs=0.005)
    assert millions(128, 128) == pytest.approx(0.66, abs=0.005)
    assert millions(768, 512) == pytest.approx(11.54, abs=0.005)


def test_dropout_acts_in_training_only() -> None:
    net = network(dropout=0.5)
    x = torch.randn((1, 30, 3), dtype=torch.float64)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_every_parameter_gets_a_gradient() -> None:
    net = network(channels=(4, 4, 6))
    net(torch.randn((2, 30, 3), dtype=torch.float64)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_downsampling_starts_from_xaviers_distribution_with_gain_root_two() -> None:
    """Uniform in +-sqrt(2) sqrt(6 / (fan in + fan out)), as published."""
    net = network(in_channels=300, channels=(200, 200))
    weight = net.levels[0].downsample.weight.detach()
    bound = (2 * 6 / (300 + 200)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not list(net.levels[1].downsample.parameters())
