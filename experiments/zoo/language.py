"""Text encoders that `transformers` has no configuration of, in plain torch.

Every network takes (b, length) token ids and gives (b, width) embeddings; b is the batch. Where a model's publication
leaves its vocabulary open, it is what the published number of parameters implies.
"""

import itertools
from functools import partial

import torch
from torch import Tensor, nn


class Bag(nn.Module):
    """Averages word vectors: all that NNLM (Bengio et al. 2003) and Word2vec (Mikolov et al. 2013) do once trained."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(vocabulary, width, mode="mean")

    def forward(self, ids: Tensor) -> Tensor:
        """See the module."""
        out: Tensor = self.vectors(ids)
        return out


class Characters(nn.Module):
    """ELMo's words from their letters, (b, length) -> (b, length, 512): Peters et al. 2018, section 3.4.

    Ids of words stand for their spelling: letter k of word w is one of 262, computed from w.
    """

    FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
    LETTERS, LENGTH, WIDTH = 262, 50, 16

    def __init__(self, out: int = 512) -> None:
        super().__init__()
        self.letters = nn.Embedding(self.LETTERS, self.WIDTH)
        self.filters = nn.ModuleList(nn.Conv1d(self.WIDTH, count, width) for width, count in self.FILTERS)
        wide = sum(count for _, count in self.FILTERS)
        self.highways = nn.ModuleList(nn.Linear(wide, 2 * wide) for _ in range(2))
        self.out = nn.Linear(wide, out)

    def forward(self, ids: Tensor) -> Tensor:
        """See the class."""
        spelling = (ids[..., None] * 31 + torch.arange(self.LENGTH, device=ids.device) * 7) % self.LETTERS
        x = self.letters(spelling.flatten(0, 1)).transpose(1, 2)
        x = torch.cat([torch.relu(conv(x).amax(-1)) for conv in self.filters], -1)
        for highway in self.highways:
            new, gate = highway(x).chunk(2, -1)
            gate = torch.sigmoid(gate)
            x = gate * x + (1 - gate) * torch.relu(new)
        words: Tensor = self.out(x).unflatten(0, ids.shape)
        return words


class Elmo(nn.Module):
    """Two LSTM layers of 4096 cells, projected to 512, in each direction on its own (Peters et al. 2018), averaged."""

    def __init__(self, width: int = 512, cells: int = 4096) -> None:
        super().__init__()
        self.words = Characters(width)
        self.firsts, self.seconds = (
            nn.ModuleList(nn.LSTM(width, cells, proj_size=width, batch_first=True) for _ in range(2)) for _ in range(2)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """See the module."""
        words = self.words(ids)
        made = []
        for turned, (first, second) in enumerate(zip(self.firsts, self.seconds)):
            x = first(words.flip(1) if turned else words)[0]
            x = x + second(x)[0]
            made.append(x.flip(1) if turned else x)
        return torch.cat(made, -1).mean(1)


class Averaging(nn.Module):
    """Universal Sentence Encoder, deep averaging (Cer et al. 2018, section 3.2): words and pairs of them, averaged."""

    def __init__(self, vocabulary: int, width: int = 320, hidden: int = 512, layers: int = 4) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(vocabulary, width, mode="mean")
        sizes = [width] + [hidden] * layers
        steps = [nn.Sequential(nn.Linear(i, o), nn.Tanh()) for i, o in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(*steps)
        self.vocabulary = vocabulary

    def forward(self, ids: Tensor) -> Tensor:
        """See the module."""
        pairs = (ids[:, 1:] * 65_599 + ids[:, :-1]) % self.vocabulary
        out: Tensor = self.layers(self.vectors(torch.cat([ids, pairs], 1)))
        return out


class SentenceTransformer(nn.Module):
    """Universal Sentence Encoder, transformer (Cer et al. 2018, section 3.1): the sum of all places, by their root."""

    def __init__(self, vocabulary: int, width: int = 512, layers: int = 6, longest: int = 512) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(longest, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, 512)

    def forward(self, ids: Tensor) -> Tensor:
        """See the module."""
        length = ids.shape[1]
        x = self.layers(self.tokens(ids) + self.places[:length])
        out: Tensor = torch.tanh(self.out(x.sum(1) / length**0.5))
        return out


class SentenceCnn(nn.Module):
    """Universal Sentence Encoder, multilingual and convolutional (Yang et al. 2020, section 3.2)."""

    WIDTHS, COUNT = (1, 2, 3, 5), 256

    def __init__(self, vocabulary: int, width: int = 512) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        wide = len(self.WIDTHS) * self.COUNT
        self.first, self.second = (
            nn.ModuleList(nn.Conv1d(i, self.COUNT, k, padding=k // 2) for k in self.WIDTHS) for i in (width, wide)
        )
        self.out = nn.Linear(wide, 512)

    def forward(self, ids: Tensor) -> Tensor:
        """See the module."""
        x = self.tokens(ids).transpose(1, 2)
        for filters in (self.first, self.second):
            x = torch.relu(torch.cat([conv(x)[..., : ids.shape[1]] for conv in filters], 1))
        out: Tensor = torch.tanh(self.out(x.amax(-1)))
        return out


nnlm_50, nnlm_128 = partial(Bag, 963_812, 50), partial(Bag, 973_771, 128)
word2vec_250, word2vec_500 = partial(Bag, 1_009_375, 250), partial(Bag, 1_009_375, 500)
use_dan = partial(Averaging, 799_000)
use_transformer = partial(SentenceTransformer, 250_000)
use_multilingual_cnn = partial(SentenceCnn, 125_000)
use_multilingual_transformer = partial(SentenceTransformer, 128_000)
