"""Image classifiers that `transformers` has no configuration of, in plain torch.

Every network takes (b, 3, s, s) and gives (b, 1000) logits; b is the batch, s the side of the image. Shapes of blocks
stand at their classes, h being the side of a feature map.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 1000
Kernel = int | tuple[int, int]


def _half(kernel: Kernel) -> Kernel:
    """Padding that keeps the size."""
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def conv_bn(i: int, o: int, kernel: Kernel, stride: int = 1, padding: Kernel | None = None) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU: (b, i, h, h) -> (b, o, h / stride, h / stride) by default."""
    padding = _half(kernel) if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, padding, bias=False), nn.BatchNorm2d(o, eps=1e-3), nn.ReLU(inplace=True)
    )


class Branches(nn.ModuleList):
    """Gives the same input to all of its members and joins what they make: (b, i, h, h) -> (b, sum of o, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([branch(x) for branch in self], 1)


def _head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]


def vgg(repeats: Sequence[int]) -> nn.Module:
    """VGG (Simonyan and Zisserman 2015, Table 1): (2, 2, 3, 3, 3) is D, with 16 layers, (2, 2, 4, 4, 4) E, with 19."""
    layers: list[nn.Module] = []
    i = 3
    for o, count in zip((64, 128, 256, 512, 512), repeats):
        for _ in range(count):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(inplace=True)]
            i = o
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), nn.Linear(4096, 4096), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *dense, nn.Linear(4096, CLASSES))


class PreActivation(nn.Module):
    """Bottleneck that normalises first (He et al. 2016, Fig. 4e): (b, i, h, h) -> (b, 4 f, h / stride, h / stride)."""

    def __init__(self, i: int, f: int, stride: int, project: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(i), nn.ReLU())
        self.shortcut = nn.Conv2d(i, 4 * f, 1, stride) if project else nn.MaxPool2d(1, stride)
        self.body = nn.Sequential(
            nn.Conv2d(i, f, 1, bias=False),
            nn.BatchNorm2d(f),
            nn.ReLU(),
            nn.Conv2d(f, f, 3, stride, 1, bias=False),
            nn.BatchNorm2d(f),
            nn.ReLU(),
            nn.Conv2d(f, 4 * f, 1),
        )
        self.project = project

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        ready = self.first(x)
        out: Tensor = self.shortcut(ready if self.project else x) + self.body(ready)
        return out


def resnet_v2(blocks: Sequence[int]) -> nn.Module:
    """ResNet V2 (He et al. 2016): (3, 4, 6, 3) has 50 layers, (3, 4, 23, 3) 101. Strides stand at the stages' ends."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1)]
    i = 64
    for f, count, stride in zip((64, 128, 256, 512), blocks, (2, 2, 2, 1)):
        for k in range(count):
            layers.append(PreActivation(i, f, stride if k == count - 1 else 1, project=k == 0))
            i = 4 * f
    return nn.Sequential(*layers, nn.BatchNorm2d(i), nn.ReLU(), *_head(i))


class DenseLayer(nn.Module):
    """Adds `growth` channels to its input: (b, i, h, h) -> (b, i + growth, h, h)."""

    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        wide = 4 * growth
        self.body = nn.Sequential(
            nn.BatchNorm2d(i),
            nn.ReLU(),
            nn.Conv2d(i, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([x, self.body(x)], 1)


def densenet(blocks: Sequence[int], growth: int = 32) -> nn.Module:
    """DenseNet-BC (Huang et al. 2017, Table 1): (6, 12, 24, 16) has 121 layers."""
    i = 64
    layers: list[nn.Module] = [*conv_bn(3, i, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, count in enumerate(blocks):
        for _ in range(count):
            layers.append(DenseLayer(i, growth))
            i += growth
        layers += [nn.BatchNorm2d(i), nn.ReLU()]
        if stage < len(blocks) - 1:
            layers += [nn.Conv2d(i, i // 2, 1, bias=False), nn.AvgPool2d(2)]
            i //= 2
    return nn.Sequential(*layers, *_head(i))


def _inception_stem() -> list[nn.Module]:
    """(b, 3, s, s) -> (b, 192, s / 8, s / 8), less the edges."""
    return [
        conv_bn(3, 32, 3, 2, padding=0),
        conv_bn(32, 32, 3, padding=0),
        conv_bn(32, 64, 3),
        nn.MaxPool2d(3, 2),
        conv_bn(64, 80, 1),
        conv_bn(80, 192, 3, padding=0),
        nn.MaxPool2d(3, 2),
    ]


def _pooled(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(i, o, 1))


def _chain(i: int, *steps: tuple[int, Kernel]) -> nn.Sequential:
    """`conv_bn` after `conv_bn`, each given by its channels and kernel."""
    layers = []
    for o, kernel in steps:
        layers.append(conv_bn(i, o, kernel))
        i = o
    return nn.Sequential(*layers)


def _down(i: int, *steps: tuple[int, Kernel]) -> nn.Sequential:
    """A `_chain` whose last step halves the size, without padding."""
    before = i if len(steps) == 1 else steps[-2][0]
    return nn.Sequential(_chain(i, *steps[:-1]), conv_bn(before, steps[-1][0], steps[-1][1], 2, padding=0))


def _wide_ends(i: int) -> Branches:
    """The last kind of block of Inception V3, with forks of 1 x 3 and 3 x 1: (b, i, h, h) -> (b, 2048, h, h)."""

    def fork(i: int) -> Branches:
        return Branches([conv_bn(i, 384, (1, 3)), conv_bn(i, 384, (3, 1))])

    one = nn.Sequential(_chain(i, (384, 1)), fork(384))
    two = nn.Sequential(_chain(i, (448, 1), (384, 3)), fork(384))
    return Branches([_chain(i, (320, 1)), one, two, _pooled(i, 192)])


def inception_v3() -> nn.Module:
    """Inception V3 without the auxiliary classifier (Szegedy et al. 2016, Table 1)."""
    layers = _inception_stem()
    i = 192
    for pooled in (32, 64, 64):
        layers.append(
            Branches(
                [
                    _chain(i, (64, 1)),
                    _chain(i, (48, 1), (64, 5)),
                    _chain(i, (64, 1), (96, 3), (96, 3)),
                    _pooled(i, pooled),
                ]
            )
        )
        i = 224 + pooled
    layers.append(Branches([_down(i, (384, 3)), _down(i, (64, 1), (96, 3), (96, 3)), nn.MaxPool2d(3, 2)]))
    i = 768
    for c in (128, 160, 160, 192):
        once = _chain(i, (c, 1), (c, (1, 7)), (192, (7, 1)))
        twice = _chain(i, (c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7)))
        layers.append(Branches([_chain(i, (192, 1)), once, twice, _pooled(i, 192)]))
    seven = _down(i, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3))
    layers.append(Branches([_down(i, (192, 1), (320, 3)), seven, nn.MaxPool2d(3, 2)]))
    return nn.Sequential(*layers, _wide_ends(1280), _wide_ends(2048), *_head(2048))


class ScaledResidual(nn.Module):
    """Adds a scaled projection of its branches to the input: (b, i, h, h) -> the same."""

    def __init__(self, branches: Branches, joined: int, i: int, scale: float) -> None:
        super().__init__()
        self.branches, self.scale = branches, scale
        self.up = nn.Conv2d(joined, i, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.relu(x + self.scale * self.up(self.branches(x)))


def inception_resnet_v2() -> nn.Module:
    """Inception-ResNet-v2 (Szegedy et al. 2017, Figs 15 to 19), with the stem of its published TensorFlow code."""
    layers = _inception_stem()
    i = 192
    one, two = _chain(i, (48, 1), (64, 5)), _chain(i, (64, 1), (96, 3), (96, 3))
    layers.append(Branches([_chain(i, (96, 1)), one, two, _pooled(i, 64)]))
    i = 320
    for _ in range(10):
        joined = Branches([_chain(i, (32, 1)), _chain(i, (32, 1), (32, 3)), _chain(i, (32, 1), (48, 3), (64, 3))])
        layers.append(ScaledResidual(joined, 128, i, 0.17))
    layers.append(Branches([_down(i, (384, 3)), _down(i, (256, 1), (256, 3), (384, 3)), nn.MaxPool2d(3, 2)]))
    i = 1088
    for _ in range(20):
        joined = Branches([_chain(i, (192, 1)), _chain(i, (128, 1), (160, (1, 7)), (192, (7, 1)))])
        layers.append(ScaledResidual(joined, 384, i, 0.1))
    short, long = _down(i, (256, 1), (288, 3)), _down(i, (256, 1), (288, 3), (320, 3))
    layers.append(Branches([_down(i, (256, 1), (384, 3)), short, long, nn.MaxPool2d(3, 2)]))
    i = 2080
    for _ in range(10):
        joined = Branches([_chain(i, (192, 1)), _chain(i, (192, 1), (224, (1, 3)), (256, (3, 1)))])
        layers.append(ScaledResidual(joined, 448, i, 0.2))
    return nn.Sequential(*layers, conv_bn(i, 1536, 1), *_head(1536))


def _separable(i: int, o: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """NASNet's separable convolution, applied twice: (b, i, h, h) -> (b, o, h / stride, h / stride), rounded up."""

    def once(i: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(i, i, kernel, stride, kernel // 2, groups=i, bias=False)
        return [nn.ReLU(), depthwise, nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o, eps=1e-3)]

    return nn.Sequential(*once(i, stride), *once(o, 1))


def _pointwise(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o, eps=1e-3))


class Halve(nn.Module):
    """Halves the older input of a cell without losing every second pixel: (b, i, h, h) -> (b, o, h / 2, h / 2)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.even, self.odd = nn.Conv2d(i, o // 2, 1, bias=False), nn.Conv2d(i, o - o // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(o, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        out: Tensor = self.norm(torch.cat([self.even(x[:, :, ::2, ::2]), self.odd(shifted[:, :, ::2, ::2])], 1))
        return out


class Cell(nn.Module):
    """What both cells of NASNet-A have: the last output and the one before, brought to f channels and one size.

    Attributes:
        joins: Parts of f channels that the output joins.
        stride: By how much it is smaller.
    """

    joins: int
    stride: int

    def __init__(self, i: int, p: int, f: int, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.now = _pointwise(i, f)
        keep = first or p == f  # the first cell has no older output, and takes the image's features as they are
        self.before = Halve(p, f) if halve else nn.Identity() if keep else _pointwise(p, f)


class NormalCell(Cell):
    """NASNet-A's normal cell: the last output (b, i, h, h) and the one before, of p channels -> (b, 6 f, h, h)."""

    joins, stride = 6, 1

    def __init__(self, i: int, p: int, f: int, halve: bool, first: bool = False) -> None:
        super().__init__(i, p, f, halve, first)
        self.now_5, self.now_3 = _separable(f, f, 5), _separable(f, f, 3)
        self.before_5, self.before_3, self.before_3b = _separable(f, f, 5), _separable(f, f, 3), _separable(f, f, 3)
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """See the class."""
        p, h = self.before(before), self.now(x)
        pooled = self.pool(p)
        parts = [
            self.now_5(h) + self.before_3(p),
            self.before_5(p) + self.before_3b(p),
            self.pool(h) + p,
            pooled + pooled,
            self.now_3(h) + h,
        ]
        return torch.cat([p, *parts], 1)


class ReductionCell(Cell):
    """NASNet-A's reduction cell: as the normal one, but -> (b, 4 f, h / 2, h / 2), rounded up."""

    joins, stride = 4, 2

    def __init__(self, i: int, p: int, f: int, halve: bool, first: bool = False) -> None:
        super().__init__(i, p, f, halve, first)
        older = p if first else f
        self.now_5, self.after_3 = _separable(f, f, 5, 2), _separable(f, f, 3)
        self.before_7, self.before_7b = _separable(older, f, 7, 2), _separable(older, f, 7, 2)
        self.before_5 = _separable(older, f, 5, 2)
        self.max, self.mean = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.mean_after = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """See the class."""
        p, h = self.before(before), self.now(x)
        one = self.now_5(h) + self.before_7(p)
        two = self.max(h) + self.before_7b(p)
        three = self.mean(h) + self.before_5(p)
        return torch.cat([two, three, self.mean_after(one) + two, self.after_3(one) + self.max(h)], 1)


class NasNet(nn.Module):
    """NASNet-A (Zoph et al. 2018, Fig. 4 and appendix): `repeats` @ `width`, the channels before the classifier."""

    def __init__(self, width: int, repeats: int, stem: int, skip: bool) -> None:
        super().__init__()
        f = width // 24
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, 2, bias=False), nn.BatchNorm2d(stem, eps=1e-3))
        plan: list[tuple[type[Cell], int]]
        plan = [(ReductionCell, f // 4), (ReductionCell, f // 2), *[(NormalCell, f)] * repeats]
        for scale in (2, 4):
            plan += [(ReductionCell, scale * f), *[(NormalCell, scale * f)] * repeats]
        # The larger one lets the cell after a reduction see what came two cells before, the smaller one what came
        # just before. `x` and `p` are the channels and the halvings of the two inputs of the next cell.
        x, p = (stem, 0), (stem, 0)
        self.cells, self.older = nn.ModuleList(), []
        for k, (kind, filters) in enumerate(plan):
            self.cells.append(kind(x[0], p[0], filters, halve=p[1] != x[1], first=k == 0))
            skipped = skip and kind is ReductionCell and k > 1
            self.older.append(skipped)
            x, p = (kind.joins * filters, x[1] + kind.stride - 1), p if skipped else x
        self.head = nn.Sequential(nn.ReLU(), *_head(x[0]))

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        x = before = self.stem(image)
        for cell, older in zip(self.cells, self.older):
            x, before = cell(x, before), before if older else x
        logits: Tensor = self.head(x)
        return logits


vgg_16, vgg_19 = partial(vgg, (2, 2, 3, 3, 3)), partial(vgg, (2, 2, 4, 4, 4))
resnet_50_v2, resnet_101_v2 = partial(resnet_v2, (3, 4, 6, 3)), partial(resnet_v2, (3, 4, 23, 3))
densenet_121 = partial(densenet, (6, 12, 24, 16))
nasnet_mobile, nasnet_large = partial(NasNet, 1056, 4, 32, False), partial(NasNet, 4032, 6, 96, True)
