"""The bundled demo application: a small residual network that classifies a 64 x 64 image.

Random weights, always the same: speed does not depend on them. `python -m morphling_ray.tune` tunes it when no other
application is named; `serve run morphling_ray.serving.demo:app` serves it as it is.
"""

import torch
from torch import nn

from morphling_ray.serving.images import decode_image, encode_class, image_request
from morphling_ray.serving.torch_model import ServedModel
from morphling_ray.serving.torch_server import application


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, (b, i, h, w) -> (b, o, h / stride, w / stride)."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(i, o, 3, stride, 1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(),
            nn.Conv2d(o, o, 3, 1, 1, bias=False),
            nn.BatchNorm2d(o),
        )
        self.shortcut = nn.Conv2d(i, o, 1, stride, bias=False) if stride > 1 or i != o else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return torch.relu(self.body(x) + self.shortcut(x))


def build(width: int = 64) -> nn.Module:
    """A residual network with four stages, (b, 3, 64, 64) -> (b, 1000)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, width, 1),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 4 * width, 2),
        Residual(4 * width, 8 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, 1000),
    )


model = ServedModel(build=build, decode=decode_image, encode=encode_class, request=image_request)
app = application("morphling_ray.serving.demo:model", name="ImageClassifier")
request = image_request
space = {
    "cpu_cores": [1, 2, 4, 8],
    "max_batch_size": [1, 2, 4, 8, 16, 32],
    "batch_wait_timeout_ms": [0, 5, 20],
    "precision": ["float32", "bfloat16"],
}
