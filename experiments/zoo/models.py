"""The zoo's models, with what their requests send; needs no Ray."""

from functools import partial
from typing import Any

import torch

from experiments.zoo import networks
from morphling_ray.serving.images import decode_image, encode_class, image_request
from morphling_ray.serving.torch_model import ServedModel

LENGTH, VOCABULARY, FEATURES = 48, 8000, 1024


def token_request() -> dict[str, list[int]]:
    """Pseudo-random token ids, always the same."""
    generator = torch.Generator().manual_seed(0)
    return {"ids": torch.randint(0, VOCABULARY, (LENGTH,), generator=generator).tolist()}


def decode_tokens(payload: Any) -> torch.Tensor:
    """`{"ids": [...]}` -> (48,) integers."""
    return torch.tensor(payload["ids"])


def feature_request() -> dict[str, list[float]]:
    """Pseudo-random features, always the same."""
    generator = torch.Generator().manual_seed(0)
    return {"features": [round(x, 3) for x in torch.randn(FEATURES, generator=generator).tolist()]}


def decode_features(payload: Any) -> torch.Tensor:
    """`{"features": [...]}` -> (1024,)."""
    return torch.tensor(payload["features"])


def large_image_request() -> dict[str, str]:
    """A 96 x 96 image."""
    return image_request(96)


def small_image_request() -> dict[str, str]:
    """A 64 x 64 image."""
    return image_request(64)


def _images(build: Any, size: int) -> ServedModel:
    request = large_image_request if size == 96 else small_image_request
    return ServedModel(build=build, decode=partial(decode_image, size=size), encode=encode_class, request=request)


MODELS = {
    "mobile_cnn": _images(networks.mobile_cnn, 96),
    "plain_cnn": _images(networks.plain_cnn, 64),
    "mixer": _images(networks.Mixer, 64),
    "text_encoder": ServedModel(networks.TextEncoder, decode_tokens, encode_class, token_request),
    "recurrent": ServedModel(networks.Recurrent, decode_tokens, encode_class, token_request),
    "ranker": ServedModel(networks.ranker, decode_features, encode_class, feature_request),
}
FAMILIES = {
    "mobile_cnn": "cnn",
    "plain_cnn": "cnn",
    "mixer": "mixer",
    "text_encoder": "transformer",
    "recurrent": "rnn",
    "ranker": "mlp",
}

mobile_cnn_model, plain_cnn_model, mixer_model = MODELS["mobile_cnn"], MODELS["plain_cnn"], MODELS["mixer"]
text_encoder_model, recurrent_model, ranker_model = MODELS["text_encoder"], MODELS["recurrent"], MODELS["ranker"]
