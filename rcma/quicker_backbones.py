"""IR-50 and VGGish for prediction on a CPU: the same embeddings but for rounding, in less than half the time.

Three things are done otherwise. Convolutions are :class:`rcma.winograd.WinogradConvolution`. What surrounds them,
BatchNorm, activation and residual, goes into their weights or is done tile by tile. And each core has images of its
own: the products of a tile are small, and threads that share one wait for each other longer than they work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcma.backbones import IR50, IRUnit, VGGish
from rcma.model import RCMA
from rcma.winograd import Place, WinogradConvolution

_IMAGES_AT_ONCE = 32
"""Enough for the matrix products to be quick, few enough for what is done to a tile of them to stay in the cache."""
_LARGE_MAPS_AT_ONCE = 8
_FACE_TILE = (5, 5)
"""Divides all maps of IR-50: 40, 20, 10, 5."""
_PATCH_TILE = (6, 4)
"""Divides all maps of VGGish: 48x32, 24x16, 12x8."""

Embed = Callable[[Tensor], Tensor]


def quicker_forms(model: RCMA) -> dict[str, Embed]:
    """Of those backbones of a model that run in float32 on the CPU and have one; see :func:`quicker_form`."""
    if next(model.parameters()).device.type != "cpu":
        return {}
    plain = {m: network for m, network in model.backbone.items() if getattr(model.settings, m).precision == "float32"}
    forms = {m: quicker_form(network) for m, network in plain.items()}
    return {m: form for m, form in forms.items() if form is not None}


@torch.no_grad()
def quicker_form(network: nn.Module) -> Embed | None:
    """What gives a network's embeddings more quickly; None where there is no such form.

    Args:
        network: float32 on the CPU, in evaluation mode. Weights that change later do not change the form.
    """
    if isinstance(network, IR50):
        return QuickerIR50(network)
    return QuickerVGGish(network) if isinstance(network, VGGish) else None


class QuickerIR50:
    """See :class:`rcma.backbones.IR50`."""

    def __init__(self, network: IR50) -> None:
        """Transform the weights, which takes five times their memory."""
        self._input, self._output = network.input_layer, network.output_layer
        self._units = []
        side = network.side
        for unit in network.body:
            assert isinstance(unit, IRUnit)
            self._units.append(_QuickerIRUnit(unit, side))
            side //= self._units[-1].stride

    def __call__(self, faces: Tensor) -> Tensor:
        """Crops (N,3,40,40) RGB in [-1,1] -> embeddings (N,512) of length 1."""
        return F.normalize(self._output(_share_out(self._body, faces)), dim=1)

    def _body(self, faces: Tensor) -> Tensor:
        maps = _to_maps(self._input(faces))
        for unit in self._units:
            maps = unit(maps)
        return _to_images(maps)


class _QuickerIRUnit:
    def __init__(self, unit: IRUnit, side: int) -> None:
        layers = cast("tuple[nn.BatchNorm2d, nn.Conv2d, nn.PReLU, nn.Conv2d, nn.BatchNorm2d]", tuple(unit.res_layer))
        norm, convolution, activation, strided, last_norm = layers
        self.stride = strided.stride[0]
        scale, shift = _scale_and_shift(norm)
        self._first = WinogradConvolution(convolution.weight * scale[:, None, None], tile=_FACE_TILE)
        # The border is zero after BatchNorm, not before: what its shift adds is less there, and no single bias.
        shifts = shift[:, None, None].expand(1, -1, side, side)
        self._bias = _to_maps(F.conv2d(shifts, convolution.weight, padding=1))  # (side,side,1,K)
        self._slope = activation.weight
        if self.stride == 1:
            assert isinstance(unit.shortcut_layer, nn.MaxPool2d)  # of one pixel: nothing is done
            scale, self._shift = _scale_and_shift(last_norm)
            self._second = WinogradConvolution(strided.weight * scale[:, None, None, None], tile=_FACE_TILE)
        else:
            self._strided, self._shortcut = unit.res_layer[3:], unit.shortcut_layer

    def __call__(self, maps: Tensor) -> Tensor:
        def activate(values: Tensor, place: Place) -> Tensor:
            values += self._bias[place]
            return F.prelu(values.flatten(0, 2), self._slope).view_as(values)

        def add(values: Tensor, place: Place) -> Tensor:
            values += self._shift
            values += maps[place]
            return values

        inner = self._first(maps, activate)
        if self.stride == 1:
            return self._second(inner, add)
        return _to_maps(self._strided(_to_images(inner)) + self._shortcut(_to_images(maps)))


class QuickerVGGish:
    """See :class:`rcma.backbones.VGGish`."""

    def __init__(self, network: VGGish) -> None:
        """Transform the weights, which takes five times the memory of those of the convolutions."""
        self._first, self._output = network.features[0], network.embeddings
        self._layers: list[Callable[[Tensor], Tensor]] = []
        for layer in network.features[3:]:
            if isinstance(layer, nn.Conv2d):
                self._layers.append(_ConvolutionAndReLU(layer))
            elif isinstance(layer, nn.MaxPool2d):
                self._layers.append(_halve)

    def __call__(self, patches: Tensor) -> Tensor:
        """Log-mel patches (N,96,64) -> embeddings (N,128)."""
        return torch.as_tensor(self._output(_share_out(self._features, patches)))

    def _features(self, patches: Tensor) -> Tensor:
        # The maps of the first layer are large: those of a few patches stay in the cache.
        few_at_once = patches[:, None].split(_LARGE_MAPS_AT_ONCE)
        maps = torch.cat([_halve(_to_maps(self._first(few)).relu_()) for few in few_at_once], dim=2)
        for layer in self._layers:
            maps = layer(maps)
        return maps.permute(2, 0, 1, 3).flatten(1)  # (N,6*4*512), channels last


class _ConvolutionAndReLU:
    def __init__(self, layer: nn.Conv2d) -> None:
        assert layer.bias is not None
        self._convolution, self._bias = WinogradConvolution(layer.weight, tile=_PATCH_TILE), layer.bias

    def __call__(self, maps: Tensor) -> Tensor:
        return self._convolution(maps, lambda values, _: values.add_(self._bias).relu_())


def _halve(maps: Tensor) -> Tensor:
    """Maps (H,W,N,C) -> (H/2,W/2,N,C), the largest of four pixels."""
    rows = torch.maximum(maps[::2], maps[1::2])
    return torch.maximum(rows[:, ::2], rows[:, 1::2])


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What BatchNorm multiplies by and then adds in evaluation mode, (C,) each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def _to_maps(images: Tensor) -> Tensor:
    """(N,C,H,W) -> (H,W,N,C)."""
    return images.permute(2, 3, 0, 1).contiguous()


def _to_images(maps: Tensor) -> Tensor:
    """(H,W,N,C) -> (N,C,H,W)."""
    return maps.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _share_out(work: Embed, images: Tensor) -> Tensor:
    """Work on pieces of a batch (N,...), one in each thread at a time, all of about the same size."""
    n_threads = torch.get_num_threads()
    n_rounds = math.ceil(len(images) / (_IMAGES_AT_ONCE * n_threads))
    n_pieces = min(n_rounds * n_threads, len(images))
    torch.set_num_threads(1)  # holds for the new threads
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            return torch.cat(list(pool.map(torch.no_grad()(work), images.tensor_split(n_pieces))))
    finally:
        torch.set_num_threads(n_threads)
