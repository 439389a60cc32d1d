"""Two deployments: one turns a text into counts, the other scores them. `spam.yaml` deploys them."""

import zlib

import torch
from ray import serve
from torch import nn


@serve.deployment
class Score:
    def __init__(self, width):
        hidden = [nn.Linear(4096, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        self.model = nn.Sequential(*hidden, nn.Linear(width, 1))

    def score(self, counts):
        with torch.inference_mode():
            return self.model(counts).sigmoid().item()


@serve.deployment
class Spam:
    def __init__(self, scorer):
        self.scorer = scorer

    async def __call__(self, mail):
        counts = torch.zeros(4096)
        for word in mail["body"].lower().split():
            counts[zlib.crc32(word.encode()) % 4096] += 1
        return {"spam": await self.scorer.score.remote(counts)}


def build(args):
    return Spam.bind(Score.bind(int(args.get("width", 256))))
