"""The bundled demo application: a small residual network that classifies a 64 x 64 image, on the CPU.

Random weights, always the same: speed does not depend on them. `python -m morphling_ray.tune` tunes it when no other
application is named; `serve run morphling_ray.serving.demo:app` serves it as it is.
"""

import base64
from typing import Any

import torch
from torch import nn

from morphling_ray.serving.torch_server import ServedModel, application

SIZE = 64


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


def decode_image(payload: Any, size: int = SIZE) -> torch.Tensor:
    """`{"image": base64 of size x size RGB bytes}` -> (3, size, size), each entry in [-1, 1]."""
    pixels = bytearray(base64.b64decode(payload["image"]))
    image = torch.frombuffer(pixels, dtype=torch.uint8).view(size, size, 3)
    return image.permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def image_request(size: int = SIZE) -> dict[str, str]:
    """A fixed pseudo-random image as a request's payload."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size * size * 3,), dtype=torch.uint8, generator=generator)
    return {"image": base64.b64encode(pixels.numpy().tobytes()).decode()}


def encode_class(row: torch.Tensor) -> dict[str, Any]:
    """Logits (classes,) -> the most likely class and its probability."""
    probability, label = torch.softmax(row, 0).max(0)
    return {"class": int(label), "probability": round(float(probability), 4)}


model = ServedModel(build=build, decode=decode_image, encode=encode_class, request=image_request)
app = application("morphling_ray.serving.demo:model", name="ImageClassifier")
request = image_request
space = {
    "cpu_cores": [1, 2, 4, 8],
    "max_batch_size": [1, 2, 4, 8, 16, 32],
    "batch_wait_timeout_ms": [0, 5, 20],
    "precision": ["float32", "bfloat16"],
}
