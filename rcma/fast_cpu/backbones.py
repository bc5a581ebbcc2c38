"""Optimised inference for IR-50 and VGGish on CPUs: the same embeddings in about a third of the time.

BatchNorm is folded into the weights of :class:`WinogradConvolution`; activation and residual are applied to each tile
while it is in the cache. Rows of log-mel that neighbouring patches share are computed once. Each thread works on its
own images, because the matrix products of a tile are too small to be divided among threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preprocessing.threads import use_cores
from rcma.fast_cpu.winograd import Place, WinogradConvolution
from rcma.model import IR50, RCMA, IRUnit, VGGish

_IMAGES_AT_ONCE = 32
"""Enough for fast matrix products, few enough for a tile to stay in the cache."""
_LARGE_MAPS_AT_ONCE = 8
_PATCHES_WORTH_SHARING = 4
_MOST_ROWS_APART = 16
"""From one patch to the next; with more, sharing saves little."""
_FACE_TILE = (5, 5)
"""Divides all maps of IR-50: 40, 20, 10, 5."""
_PATCH_TILE = (6, 4)
"""Divides all maps of VGGish: 48x32, 24x16, 12x8."""
_PATCH_TILE_OF_FOURTH = (4, 4)
"""Also divides the eight edge rows that the fourth convolution gets."""

Embed = Callable[[Tensor], Tensor]


def optimised_backbones(model: RCMA) -> dict[str, Embed]:
    """Optimised inference for a model's IR-50 and VGGish in float32 on the CPU, by modality."""
    if next(model.parameters()).device.type != "cpu":
        return {}
    plain = {m: network for m, network in model.backbone.items() if getattr(model.settings, m).precision == "float32"}
    return {m: embed for m, network in plain.items() if (embed := optimise(network)) is not None}


@torch.no_grad()
def optimise(network: nn.Module) -> Embed | None:
    """Optimised inference for IR-50 or VGGish, safe to call from several threads; None for other networks.

    Args:
        network: float32 on the CPU, in evaluation mode. Later changes of its weights have no effect.
    """
    if isinstance(network, IR50):
        return FastIR50(network)
    return FastVGGish(network) if isinstance(network, VGGish) else None


class FastIR50:
    """See :class:`rcma.model.backbones.IR50`."""

    def __init__(self, network: IR50) -> None:
        """Transform the weights; this needs six times their memory."""
        convolution, norm, activation = cast("tuple[nn.Conv2d, nn.BatchNorm2d, nn.PReLU]", tuple(network.input_layer))
        scale, self._shift = _scale_and_shift(norm)
        self._weight = (convolution.weight * scale[:, None, None, None]).permute(2, 3, 1, 0).flatten(0, 2)  # (9*3,64)
        self._slope, self._output = activation.weight, network.output_layer
        self._units = []
        side = network.side
        for unit in network.body:
            assert isinstance(unit, IRUnit)
            self._units.append(_FastIRUnit(unit, side))
            side //= self._units[-1].stride

    def __call__(self, faces: Tensor) -> Tensor:
        """Crops (N,3,40,40) RGB in [-1,1] -> embeddings (N,512) of length 1."""
        return F.normalize(self._output(_parallel(self._body, faces)), dim=1)

    def _body(self, faces: Tensor) -> Tensor:
        # Three channels are too few for Winograd convolution: one matrix product over all 3x3 neighbourhoods.
        around = _to_maps(F.pad(faces, (1, 1, 1, 1))).unfold(0, 3, 1).unfold(1, 3, 1)  # (40,40,N,3,3,3)
        neighbours = around.permute(0, 1, 2, 4, 5, 3)
        maps = F.prelu(torch.addmm(self._shift, neighbours.reshape(-1, len(self._weight)), self._weight), self._slope)
        maps = maps.view(*neighbours.shape[:3], -1)
        for unit in self._units:
            maps = unit(maps)
        return maps.permute(2, 3, 0, 1)


class _FastIRUnit:
    def __init__(self, unit: IRUnit, side: int) -> None:
        layers = cast("tuple[nn.BatchNorm2d, nn.Conv2d, nn.PReLU, nn.Conv2d, nn.BatchNorm2d]", tuple(unit.res_layer))
        norm, convolution, activation, strided, last_norm = layers
        self.stride = strided.stride[0]
        scale, shift = _scale_and_shift(norm)
        self._first = WinogradConvolution(convolution.weight * scale[:, None, None], tile=_FACE_TILE)
        # Padding is added after BatchNorm, so its shift adds less at the border: the bias depends on the place.
        shifts = shift[:, None, None].expand(1, -1, side, side)
        self._bias = _to_maps(F.conv2d(shifts, convolution.weight, padding=1))  # (side,side,1,K)
        self._slope = activation.weight
        scale, shift = _scale_and_shift(last_norm)
        self._projection = None
        if isinstance(unit.shortcut_layer, nn.Sequential):
            pointwise, shortcut_norm = cast("tuple[nn.Conv2d, nn.BatchNorm2d]", tuple(unit.shortcut_layer))
            shortcut_scale, shortcut_shift = _scale_and_shift(shortcut_norm)
            self._projection = (pointwise.weight.flatten(1) * shortcut_scale[:, None]).T  # (C,K)
            shift = shift + shortcut_shift
        weight = strided.weight * scale[:, None, None, None]
        self._second = WinogradConvolution(weight, shift, stride=self.stride, tile=_FACE_TILE)

    def __call__(self, maps: Tensor) -> Tensor:
        def activate(values: Tensor, place: Place, into: Tensor) -> None:
            values += self._bias[place]
            into.copy_(F.prelu(values.flatten(0, 2), self._slope).view_as(values))

        shortcut = maps[:: self.stride, :: self.stride]
        if self._projection is not None:
            shortcut = shortcut @ self._projection

        def add(values: Tensor, place: Place, into: Tensor) -> None:
            torch.add(values, shortcut[place], out=into)

        return self._second(self._first(maps, activate), add)


class FastVGGish:
    """See :class:`rcma.model.backbones.VGGish`.

    Patches of neighbouring frames share most rows of log-mel: 92 of 96 at 25 frames per second. Up to the third
    pooling, their maps also share all rows that the zero padding at the ends of a patch does not reach; these are
    computed once. After it, the other rows are half of the patch.
    """

    def __init__(self, network: VGGish) -> None:
        """Transform the weights; this needs five times the memory of the convolutions' weights."""
        self._first, self._output = network.features[0], network.embeddings
        convolutions = [layer for layer in network.features[3:] if isinstance(layer, nn.Conv2d)]
        tiles = _PATCH_TILE, _PATCH_TILE, _PATCH_TILE_OF_FOURTH, _PATCH_TILE, _PATCH_TILE
        self._second, self._third, self._fourth, self._fifth, self._sixth = map(
            _convolution_and_relu, convolutions, tiles
        )

    def __call__(self, patches: Tensor) -> Tensor:
        """Log-mel patches (N,96,64) -> embeddings (N,128)."""
        return torch.as_tensor(self._output(_parallel(self._features, patches)))

    def _features(self, patches: Tensor) -> Tensor:
        stretches = []
        for first, starts in overlapping_patches(patches):
            members = patches[first : first + len(starts)]
            together = len(starts) >= _PATCHES_WORTH_SHARING
            stretches.append(
                self._early_layers_of_overlapping(members, starts) if together else self._early_layers(members)
            )
        maps = _halve(self._sixth(self._fifth(torch.cat(stretches, dim=2))))
        return maps.permute(2, 0, 1, 3).flatten(1)  # (N,6*4*512), channels last

    def _early_layers(self, patches: Tensor) -> Tensor:
        """Patches (N,96,64) -> maps (12,8,N,256) after the third pooling."""
        # The first layer's maps are large; a few patches at once stay in the cache.
        few_at_once = patches[:, None].split(_LARGE_MAPS_AT_ONCE)
        maps = torch.cat([_halve(_to_maps(self._first(few)).relu_()) for few in few_at_once], dim=2)
        return _halve(self._fourth(self._third(_halve(self._second(maps)))))

    def _early_layers_of_overlapping(self, patches: Tensor, starts: Tensor) -> Tensor:
        """The same for patches that begin at rows ``starts`` (N,) of one strip."""
        # After two poolings a row covers four rows of the strip, so patches share rows with an equal start modulo 4.
        phases, phase = (starts % 4).unique(return_inverse=True)
        strip = torch.cat([patches[0], *(patch[96 - d :] for patch, d in zip(patches[1:], starts.diff(), strict=True))])
        height = -len(strip) % 4 + len(strip)
        strips = torch.stack([F.pad(strip[p:], (0, 0, 0, height - len(strip) + p)) for p in phases.tolist()])
        # A convolution spreads the zero padding by one row, a pooling halves its reach. These outer rows are computed
        # for each patch, from themselves and the rows next to them.
        edges = torch.cat([patches[:, :4], patches[:, 92:]], dim=1)

        def rows_of_each(inner: Tensor, rows: list[int], *, n_rows: int) -> Tensor:
            """Rows of each patch, of ``n_rows``, (len(rows),W,N,C)."""
            of_strip = starts // 4 * (n_rows // 24) + torch.tensor(rows)[:, None] % n_rows
            return inner.transpose(1, 2)[of_strip, phase].transpose(1, 2)

        def with_neighbours(edges: Tensor, inner: Tensor, k: int, *, n_rows: int) -> Tensor:
            """Edges, with the k rows next to each of them."""
            n = len(edges) // 2
            above, below = range(n, n + k), range(-n - k, -n)
            between = rows_of_each(inner, [*above, *below], n_rows=n_rows)
            return torch.cat([edges[:n], between, edges[n:]])

        inner, edges = (_halve(_to_maps(self._first(part[:, None])).relu_()) for part in (strips, edges))
        edges = self._second(with_neighbours(_outer(edges, 1), inner, 2, n_rows=48))
        inner, edges = _halve(self._second(inner)), _halve(_outer(edges, 2))
        edges = _outer(self._third(with_neighbours(edges, inner, 2, n_rows=24)), 2)
        inner = self._third(inner)
        edges = _outer(self._fourth(with_neighbours(edges, inner, 2, n_rows=24)), 3)
        inner = self._fourth(inner)
        edges = _halve(with_neighbours(edges, inner, 1, n_rows=24))
        inner = rows_of_each(_halve_from_any_row(inner), list(range(4, 20, 2)), n_rows=24)
        return torch.cat([edges[:2], inner, edges[2:]])


def overlapping_patches(patches: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Find runs of patches (N,R,C) in which each is its predecessor, moved on by a few rows.

    Yields:
        Index of the first patch, and the rows (n,) at which the run's patches begin in a strip that joins them.
    """
    first, starts = 0, [0]
    for k in range(1, len(patches)):
        before, patch = patches[k - 1 : k + 1]
        distances = range(_MOST_ROWS_APART + 1)
        distance = next((d for d in distances if torch.equal(before[d:], patch[: len(patch) - d])), None)
        if distance is None:
            yield first, torch.tensor(starts)
            first, starts = k, [0]
        else:
            starts.append(starts[-1] + distance)
    yield first, torch.tensor(starts)


def _convolution_and_relu(layer: nn.Conv2d, tile: tuple[int, int]) -> Embed:
    convolution = WinogradConvolution(layer.weight, layer.bias, tile=tile)
    return lambda maps: convolution(maps, lambda values, _, into: torch.clamp_min(values, 0.0, out=into))


def _halve(maps: Tensor) -> Tensor:
    """Max-pool maps (H,W,N,C) -> (H/2,W/2,N,C)."""
    rows = torch.maximum(maps[::2], maps[1::2])
    return torch.maximum(rows[:, ::2], rows[:, 1::2])


def _halve_from_any_row(maps: Tensor) -> Tensor:
    """Max-pool maps (H,W,N,C) -> (H-1,W/2,N,C): row k is the result for rows k and k + 1."""
    rows = torch.maximum(maps[:-1], maps[1:])
    return torch.maximum(rows[:, ::2], rows[:, 1::2])


def _outer(maps: Tensor, k: int) -> Tensor:
    """The first and last k rows of maps (H,W,N,C)."""
    return torch.cat([maps[:k], maps[-k:]])


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and summand of BatchNorm in evaluation mode, (C,) each."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def _to_maps(images: Tensor) -> Tensor:
    """(N,C,H,W) -> (H,W,N,C)."""
    return images.permute(2, 3, 0, 1).contiguous()


def _parallel(work: Embed, images: Tensor) -> Tensor:
    """Divide a batch (N,...) into equal pieces for the threads."""
    n_threads = torch.get_num_threads()
    n_rounds = math.ceil(len(images) / (_IMAGES_AT_ONCE * n_threads))
    pieces = images.tensor_split(min(n_rounds * n_threads, len(images)))
    return torch.cat(list(_threads(n_threads).map(torch.no_grad()(work), pieces)))


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    """Threads of one core each, shared by concurrent predictions."""
    return ThreadPoolExecutor(n, "fast_cpu", initializer=use_cores, initargs=(1,))


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    # A forked process does not have its parent's threads.
    os.register_at_fork(after_in_child=_threads.cache_clear)
