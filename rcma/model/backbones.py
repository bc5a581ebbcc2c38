"""Networks that turn one frame of a modality, a face crop or a log-mel patch, into an embedding.

``IR50`` and ``VGGish`` have the layers and parameter names of the published networks, so that their authors' weights
load; ``SmallFaceNet`` and ``SmallAudioNet`` are made for training from random weights on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class IRUnit(nn.Module):
    """Residual unit of ArcFace's networks (arXiv 1801.07698); only the second convolution and the shortcut stride."""

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut_layer: nn.Module = nn.MaxPool2d(kernel_size=1, stride=stride)
        if in_channels != channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N,in_channels,S,S) -> (N,channels,S/stride,S/stride)."""
        return torch.as_tensor(self.res_layer(x) + self.shortcut_layer(x))


class IR50(nn.Module):
    """ArcFace's ResNet-50 for 40x40 crops, as used by sucv/ABAW3 and praveena2j/RJCMA (res50_ir_0.887.pth)."""

    width = 512
    """Length of the embedding."""
    side = 40
    """Side of the crop in pixels."""

    STAGES = ((64, 3, 1), (128, 4, 2), (256, 14, 2), (512, 3, 2))
    """Channels, units, and stride of the first unit of each stage: 40 -> 40 -> 20 -> 10 -> 5."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        units: list[nn.Module] = []
        in_channels = 64
        for channels, n_units, stride in self.STAGES:
            for unit in range(n_units):
                units.append(IRUnit(in_channels, channels, stride=stride if unit == 0 else 1))
                in_channels = channels
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512), nn.Dropout(0.4), nn.Flatten(), nn.Linear(512 * 5 * 5, self.width), nn.BatchNorm1d(512)
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Crops (N,3,40,40) RGB in [-1,1] -> embeddings (N,512) of length 1.

        Raises:
            ValueError: the crops have another shape.
        """
        _check_shape(faces, "face crops", (3, self.side, self.side))
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))), dim=1)

    def unfreezing_groups(self) -> list[list[nn.Module]]:
        """Layers in the order of gradual unfreezing (published): the output layer, the last stage of the body, and the
        last three units of the third stage (3.54 million parameters).
        """
        units, n_last = list(self.body), self.STAGES[3][1]
        return [[self.output_layer], units[-n_last:], units[-n_last - 3 : -n_last]]


class VGGish(nn.Module):
    """VGGish (AudioSet; Hershey et al., arXiv 1609.09430) without PCA or quantisation; vggish-10086976.pth loads."""

    width = 128
    """Length of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 1
        for stage in ((64,), (128,), (256, 256), (512, 512)):
            for channels in stage:
                layers += [nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), nn.ReLU()]
                in_channels = channels
            layers.append(nn.MaxPool2d(kernel_size=2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, self.width)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Log-mel patches (N,96,64) -> embeddings (N,128).

        Raises:
            ValueError: the patches have another shape.
        """
        _check_shape(patches, "log-mel patches", (96, 64))
        maps = self.features(patches[:, None])  # (N,512,6,4)
        flat = maps.permute(0, 2, 3, 1).flatten(start_dim=1)  # (N,6*4*512), channels last as in TensorFlow
        return torch.as_tensor(self.embeddings(flat))

    def unfreezing_groups(self) -> list[list[nn.Module]]:
        """Layers in the order of gradual unfreezing (published): the fully connected layers, last to first."""
        return [[self.embeddings[4]], [self.embeddings[2]], [self.embeddings[0]]]


class SmallFaceNet(nn.Module):
    """About 3 million multiplications a face. There is no global pooling, so the places of mouth and eyes are kept."""

    width = 64
    """Length of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, channels, stride in ((3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
            layers += [
                nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False),
                # Not BatchNorm: the faces of a window are so alike that its statistics would not hold for others.
                nn.GroupNorm(num_groups=8, num_channels=channels),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(5)  # changes nothing for a side of 40
        self.embedding = nn.Linear(64 * 5 * 5, self.width)

    def forward(self, faces: Tensor) -> Tensor:
        """Crops (N,3,S,S) RGB in [-1,1] -> embeddings (N,64)."""
        maps = self.pool(self.features(faces))  # (N,64,5,5)
        return torch.as_tensor(self.embedding(maps.flatten(start_dim=1)))


class SmallAudioNet(nn.Module):
    """Convolutions over time with the mel bands as channels, for changes of the sound, and each band's mean, for its
    loudness and brightness. About 2 million multiplications a patch.
    """

    width = 64
    """Length of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, channels, kernel_size in ((64, 64, 5), (64, 64, 5), (64, 96, 3)):
            layers += [
                nn.Conv1d(in_channels, channels, kernel_size, stride=2, padding=kernel_size // 2, bias=False),
                nn.GroupNorm(num_groups=8, num_channels=channels),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.embedding = nn.Linear(2 * 96 + 64, self.width)

    def forward(self, patches: Tensor) -> Tensor:
        """Log-mel patches (N,96,64), best with mean 0 and standard deviation 1 in each band -> embeddings (N,64)."""
        maps = self.features(patches.transpose(1, 2))  # (N,96,12): channel, time
        # GroupNorm removes the level from the maps, so the bands' means bypass them.
        summary = torch.cat([maps.mean(dim=2), maps.amax(dim=2), patches.mean(dim=1)], dim=1)  # (N,96+96+64)
        return torch.as_tensor(self.embedding(summary))


def _check_shape(x: Tensor, what: str, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        wanted = ",".join(str(size) for size in shape)
        raise ValueError(f"{what}: the shape must be (N,{wanted}), given: {tuple(x.shape)}")
