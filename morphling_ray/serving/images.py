"""Images as requests send them, for models that classify."""

import base64
from typing import Any

import torch

SIZE = 64


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
