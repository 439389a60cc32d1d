"""The networks, in plain torch. Shapes stand at the classes; b is the batch."""

import torch
from torch import nn


class InvertedResidual(nn.Module):
    """Expand, depthwise 3 x 3, project (MobileNetV2, Sandler et al. 2018): (b, i, h, w) -> (b, o, h / s, w / s)."""

    def __init__(self, i: int, o: int, stride: int, expansion: int = 6) -> None:
        super().__init__()
        wide = i * expansion
        self.body = nn.Sequential(
            nn.Conv2d(i, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, o, 1, bias=False),
            nn.BatchNorm2d(o),
        )
        self.same = stride == 1 and i == o

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        out: torch.Tensor = x + self.body(x) if self.same else self.body(x)
        return out


def mobile_cnn() -> nn.Module:
    """A depthwise-separable network, (b, 3, 96, 96) -> (b, 1000)."""
    blocks = [(16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 80, 2), (80, 80, 1), (80, 160, 1), (160, 160, 1)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        *(InvertedResidual(*block) for block in blocks),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, 1000),
    )


def plain_cnn() -> nn.Module:
    """3 x 3 convolutions and pooling (VGG, Simonyan and Zisserman 2015), (b, 3, 64, 64) -> (b, 1000)."""
    layers: list[nn.Module] = []
    i = 3
    for o, repeats in ((48, 1), (96, 2), (192, 2), (256, 2)):
        for _ in range(repeats):
            layers += [nn.Conv2d(i, o, 3, 1, 1), nn.ReLU()]
            i = o
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 4 * 4, 1024), nn.ReLU(), nn.Linear(1024, 1000))


class TextEncoder(nn.Module):
    """A Transformer encoder over token ids, (b, 48) integers -> (b, 256)."""

    def __init__(self, width: int = 256, layers: int = 4, vocabulary: int = 8000, length: int = 48) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        pooled: torch.Tensor = self.layers(self.tokens(ids) + self.places).mean(1)
        return pooled


class MixerBlock(nn.Module):
    """Mixes patches, then channels (MLP-Mixer, Tolstikhin et al. 2021): (b, patches, width) -> the same."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm_a, self.norm_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.patches = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))
        self.channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = x + self.patches(self.norm_a(x).transpose(1, 2)).transpose(1, 2)
        mixed: torch.Tensor = x + self.channels(self.norm_b(x))
        return mixed


class Mixer(nn.Module):
    """(b, 3, 64, 64) -> (b, 1000)."""

    def __init__(self, width: int = 256, blocks: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(*(MixerBlock(64, width) for _ in range(blocks)))
        self.head = nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        classes: torch.Tensor = self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))
        return classes


class Recurrent(nn.Module):
    """A bidirectional GRU over token ids, (b, 48) integers -> (b, 16)."""

    def __init__(self, width: int = 320, vocabulary: int = 8000) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, width, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        labels: torch.Tensor = self.head(self.gru(self.tokens(ids))[0].mean(1))
        return labels


def ranker() -> nn.Module:
    """A wide perceptron, as in recommendation: its weights, not its arithmetic, take the time. (b, 1024) -> (b, 16)."""
    return nn.Sequential(
        nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 2048), nn.ReLU(),
        nn.Linear(2048, 16),
    )  # fmt: skip
