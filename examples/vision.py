"""ResNet-18 behind `@serve.batch`, called over the Serve handle with an encoded image."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from ray import serve
from torch import nn

SIZE = 160


def convolution(before, after, size, stride=1):
    layer = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after))


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.path = nn.Sequential(convolution(before, after, 3, stride), nn.ReLU(), convolution(after, after, 3))
        self.skip = convolution(before, after, 1, stride) if before != after else nn.Identity()

    def forward(self, x):
        return torch.relu(self.path(x) + self.skip(x))


def resnet18():
    blocks = []
    for before, after in [(64, 64), (64, 128), (128, 256), (256, 512)]:
        blocks += [Block(before, after, 1 if before == after else 2), Block(after, after, 1)]
    stem = [convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


@serve.deployment(user_config={"max_batch_size": 4, "batch_wait_timeout_s": 0.005}, max_ongoing_requests=200)
class Vision:
    def __init__(self):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = resnet18().eval().to(self.device)

    def reconfigure(self, config):
        self.classify.set_max_batch_size(config["max_batch_size"])
        self.classify.set_batch_wait_timeout_s(config["batch_wait_timeout_s"])

    @serve.batch
    async def classify(self, images):
        batch = torch.stack([self.decode(image) for image in images])
        with torch.inference_mode():
            scores = self.model(batch.to(self.device))
        return scores.argmax(dim=1).tolist()

    @staticmethod
    def decode(image):
        picture = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").resize((SIZE, SIZE))
        return torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)

    async def __call__(self, image):
        return {"class": await self.classify(image)}


app = Vision.bind()


def request():
    """What one request sends: a JPEG of the size of a preview, as text."""
    blotches = np.random.default_rng(0).integers(0, 255, (15, 20, 3), dtype=np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(blotches).resize((320, 240)).save(jpeg, "jpeg")
    return base64.b64encode(jpeg.getvalue()).decode()
