"""The zoo's models as they are served, with what their requests send; needs no Ray.

Six small ones of our own, and every one of the catalogue by its name (`experiments.zoo.models:resnet_50`). Most of
those get smaller inputs than the published ones, so that a machine with two cores serves them: what an input costs
changes; how the cost grows with the batch, the cores and the precision is the architecture's. For a GPU there is each
with inputs of the published size, too: `resnet_50_full`.
"""

import base64
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from experiments.zoo import networks
from morphling_ray.serving.images import decode_image, encode_class, image_request
from morphling_ray.serving.torch_model import ServedModel

if TYPE_CHECKING:
    from experiments.zoo.catalogue import Model

LENGTH, VOCABULARY, FEATURES = 48, 8000, 1024
LARGEST_GMACS = 1.0  # of an image as it is served
UNKNOWN_SCALE = 0.5  # of the side, where nobody published what an image costs
SMALLEST_SIDE, SIDE_STEP = 96, 32  # what the deepest networks can still halve, and what all of them divide
TOKENS, MEL_FRAMES, MEL_BANDS = 16, 3000, 80
FULL = "_full"  # ending of names


def token_request(length: int = LENGTH, vocabulary: int = VOCABULARY) -> dict[str, list[int]]:
    """Pseudo-random token ids, always the same."""
    generator = torch.Generator().manual_seed(0)
    return {"ids": torch.randint(0, vocabulary, (length,), generator=generator).tolist()}


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


def sound_request() -> dict[str, str]:
    """Pseudo-random mel bands, 30 s of sound in frames of 10 ms, always the same."""
    generator = torch.Generator().manual_seed(0)
    bands = torch.randint(0, 256, (MEL_BANDS * MEL_FRAMES,), dtype=torch.uint8, generator=generator)
    return {"mel": base64.b64encode(bands.numpy().tobytes()).decode()}


def decode_sound(payload: Any) -> torch.Tensor:
    """`{"mel": base64 of 80 x 3000 bytes}` -> (80, 3000), each entry in [-1, 1]."""
    bands = torch.frombuffer(bytearray(base64.b64decode(payload["mel"])), dtype=torch.uint8)
    return bands.view(MEL_BANDS, MEL_FRAMES).float().div_(127.5).sub_(1.0)


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


def side(model: "Model") -> int:
    """Side of the image that a model of the catalogue is served with: the published one where that is cheap."""
    if model.fixed:
        return model.size
    scale = min(1.0, math.sqrt(LARGEST_GMACS / model.macs)) if model.macs else UNKNOWN_SCALE
    return max(SMALLEST_SIDE, round(model.size * scale / SIDE_STEP) * SIDE_STEP)


def served(model: "Model", full: bool = False) -> ServedModel:
    """A model of the catalogue with its pipeline; inputs have the published size, or one that a small machine bears."""
    if model.kind == "image":
        size = model.size if full else side(model)
        request = partial(image_request, size)
        return ServedModel(model.build, partial(decode_image, size=size), encode_class, request)
    if model.kind == "text":
        ids = partial(token_request, model.size if full else TOKENS, model.vocabulary)
        return ServedModel(model.build, decode_tokens, encode_class, ids)
    return ServedModel(model.build, decode_sound, encode_class, sound_request)


def __getattr__(name: str) -> ServedModel:
    """A model of the catalogue by its name; looked up when asked for, since `transformers` takes seconds to import."""
    if name.startswith("__"):
        raise AttributeError(name)
    from experiments.zoo.catalogue import MODELS as catalogue

    if (of := name.removesuffix(FULL)) not in catalogue:
        raise AttributeError(f"the zoo has no model {name!r}")
    return served(catalogue[of], full=name.endswith(FULL))
