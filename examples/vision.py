"""A convolutional network behind `@serve.batch`, called over the Serve handle with an encoded image."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from ray import serve
from torch import nn

SIZE = 64


def network():
    def block(channels_in, channels_out):
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()
        )

    return nn.Sequential(
        block(3, 32), block(32, 64), block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 100)
    )


@serve.deployment(user_config={"max_batch_size": 4, "batch_wait_timeout_s": 0.005}, max_ongoing_requests=200)
class Vision:
    def __init__(self):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = network().eval().to(self.device)

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
    """What one request sends: a PNG of noise, as text."""
    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    return base64.b64encode(png.getvalue()).decode()
