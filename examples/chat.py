"""A small language model that streams its answers token by token, many of them at once (continuous batching)."""

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor

import torch
from ray import serve
from torch import nn

WORDS, WIDTH, CONTEXT = 5_000, 192, 64


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=6, dim_feedforward=4 * WIDTH, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.register_buffer("mask", mask)

    def forward(self, ids):
        hidden = self.layers(self.embedding(ids), mask=self.mask, is_causal=True)
        return hidden[:, -1] @ self.embedding.weight.T


@serve.deployment(user_config={"max_batch_size": 4}, max_ongoing_requests=200)
class Chat:
    def __init__(self):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = Decoder().eval().to(self.device)
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.waiting = asyncio.Queue()
        self.loop = None

    def reconfigure(self, config):
        self.most = config["max_batch_size"]

    async def __call__(self, prompt):
        if self.loop is None:
            self.loop = asyncio.create_task(self.generate())
        words = asyncio.Queue()
        ids = [zlib.crc32(word.encode()) % WORDS for word in prompt["text"].split()]
        await self.waiting.put((ids, prompt["words"], words))
        while (word := await words.get()) is not None:
            yield word

    async def generate(self):
        """One word for each of the answers that are going on, then the next; whoever waits joins between."""
        going_on = []
        while True:
            while len(going_on) < self.most and (not going_on or not self.waiting.empty()):
                going_on.append(await self.waiting.get())
            batch = torch.tensor([([0] * CONTEXT + ids)[-CONTEXT:] for ids, _, _ in going_on])
            chosen = await asyncio.get_running_loop().run_in_executor(self.thread, self.next_words, batch)
            for (ids, left, words), word in zip(going_on, chosen):
                ids.append(word)
                words.put_nowait(f"w{word}")
                if left == 1:
                    words.put_nowait(None)
            going_on = [(ids, left - 1, words) for ids, left, words in going_on if left > 1]

    @torch.inference_mode()
    def next_words(self, batch):
        return self.model(batch.to(self.device)).argmax(dim=1).tolist()


app = Chat.bind()


def request():
    """Questions of different lengths, with answers of different lengths."""
    for i in range(7):
        yield {"text": "tell me about the weather in the town where I was born " * (1 + i % 3), "words": 6 + 3 * i}
