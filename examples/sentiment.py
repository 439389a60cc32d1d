"""A text classifier of the size of BERT-small, with the work-conserving batcher of this project."""

import zlib

import torch
from ray import serve
from torch import nn

from morphling_ray import Batcher

WORDS, WIDTH, LAYERS = 30_000, 512, 4


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=8, dim_feedforward=4 * WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids):
        return self.head(self.encoder(self.embedding(ids)).mean(dim=1))


@serve.deployment(user_config={"max_batch_size": 1, "batch_wait_timeout_s": 0.0})
class Sentiment:
    def __init__(self):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = Classifier().eval().to(self.device)
        self.batch = Batcher(self.predict)

    def reconfigure(self, config):
        self.batch.reconfigure(**config)

    async def __call__(self, text):
        return await self.batch(text)

    def predict(self, texts):
        ids = [[1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in text.lower().split()][:64] for text in texts]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids]).to(self.device)
        with torch.inference_mode():
            return [{"positive": p} for p in self.model(padded).softmax(dim=1)[:, 1].tolist()]


app = Sentiment.bind()

REVIEWS = (
    "The plot is thin, but the actors make up for it and the last half hour is as good as anything this year",
    "I have seen better",
    "Two hours of my life that nobody will give me back, and I would not know where to begin with what went wrong",
)


def request():
    """Reviews in turn."""
    yield from REVIEWS
