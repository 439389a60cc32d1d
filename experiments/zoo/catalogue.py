"""The zoo's models with their published sizes: the paper's 42 in 15 families (Table 1), and modern ones beside them.

Table 1 says how many of each family there are; which ones follows from the paper's figures and, where they are silent,
from what Keras and TensorFlow Hub had in 2021. `python -m experiments.zoo` counts every model and compares.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from experiments.zoo import language, vision
from experiments.zoo.published import (
    albert,
    bert,
    build,
    efficientnet,
    electra,
    first_place,
    logits,
    mean_place,
    next_token,
    resnet,
)

MEL_BANDS = 80


@dataclass(frozen=True)
class Model:
    """One architecture.

    Attributes:
        family: Of the paper's Table 1, or a modern one.
        build: Makes the network with random weights.
        size: Side of the image, tokens, or mel frames at which it was published.
        parameters: Published, in millions.
        macs: Published multiply-accumulates of one input of `size`, in 10^9; None where nobody published them.
        source: Of both.
        kind: What a request holds: "image", "text" or "sound".
        vocabulary: Token ids of a request are below this.
        fixed: Takes inputs of `size` only.
    """

    family: str
    build: Callable[[], nn.Module]
    size: int
    parameters: float
    macs: float | None
    source: str
    kind: str = "image"
    vocabulary: int = 0
    fixed: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input of the published size: (3, size, size), (size,) token ids, or (80, size) mel bands."""
        if self.kind == "image":
            return 3, self.size, self.size
        return (self.size,) if self.kind == "text" else (MEL_BANDS, self.size)


def _text(
    family: str,
    build: Callable[[], nn.Module],
    parameters: float,
    source: str,
    macs: float | None = None,
    vocabulary: int = 30_000,
) -> Model:
    return Model(family, build, 128, parameters, macs, source, "text", vocabulary)


TORCHVISION = "torchvision's table of weights"
KERAS = "Keras Applications"
TINY = "Jiao et al. 2020, Table 1"
TURC = "Turc et al. 2019, Table 1"
LAN = "Lan et al. 2020, Table 1"
HUB = "TensorFlow Hub"
TIMM = "timm's table of results"
TAN = "Tan and Le 2019, Table 2"
ZOPH = "Zoph et al. 2018, Table 2"

PAPER: dict[str, Model] = {
    "resnet_50": Model("resnet", resnet(3, 4, 6, 3), 224, 25.56, 4.09, TORCHVISION),
    "resnet_101": Model("resnet", resnet(3, 4, 23, 3), 224, 44.55, 7.80, TORCHVISION),
    "resnet_152": Model("resnet", resnet(3, 8, 36, 3), 224, 60.19, 11.51, TORCHVISION),
    "resnet_50_v2": Model("resnet", vision.resnet_50_v2, 224, 25.61, None, KERAS),
    "resnet_101_v2": Model("resnet", vision.resnet_101_v2, 224, 44.68, None, KERAS),
    "nasnet_mobile": Model("nasnet", vision.nasnet_mobile, 224, 5.3, 0.564, ZOPH),
    "nasnet_large": Model("nasnet", vision.nasnet_large, 331, 88.9, 23.8, ZOPH),
    "vgg_16": Model("vgg", vision.vgg_16, 224, 138.36, 15.47, TORCHVISION),
    "vgg_19": Model("vgg", vision.vgg_19, 224, 143.67, 19.63, TORCHVISION),
    "inception_v3": Model("inception", vision.inception_v3, 299, 23.85, 5.71, f"{KERAS}; {TORCHVISION}"),
    "inception_resnet_v2": Model("inception", vision.inception_resnet_v2, 299, 55.87, 13.18, f"{KERAS}; {TIMM}"),
    "densenet_121": Model("densenet", vision.densenet_121, 224, 7.98, 2.83, TORCHVISION),
    "mobilenet_v1": Model(
        "mobilenet",
        build("MobileNetV1ForImageClassification", "MobileNetV1Config", logits, num_labels=1000),
        224, 4.2, 0.569, "Howard et al. 2017, Table 4",
    ),
    "mobilenet_v2": Model(
        "mobilenet",
        build("MobileNetV2ForImageClassification", "MobileNetV2Config", logits, num_labels=1000),
        224, 3.4, 0.300, "Sandler et al. 2018, Table 4",
    ),
    "efficientnet_b0": Model("efficientnet", efficientnet(1.0, 1.0, 1280), 224, 5.3, 0.39, TAN),
    "efficientnet_b1": Model("efficientnet", efficientnet(1.0, 1.1, 1280, [16]), 240, 7.8, 0.70, TAN),
    "efficientnet_b2": Model("efficientnet", efficientnet(1.1, 1.2, 1408, [5, 8, 16]), 260, 9.2, 1.0, TAN),
    "efficientnet_b3": Model("efficientnet", efficientnet(1.2, 1.4, 1536, [5, 18]), 300, 12.0, 1.8, TAN),
    "efficientnet_b4": Model("efficientnet", efficientnet(1.4, 1.8, 1792, [6]), 380, 19.0, 4.2, TAN),
    "efficientnet_b5": Model("efficientnet", efficientnet(1.6, 2.2, 2048, [13, 27]), 456, 30.0, 9.9, TAN),
    "efficientnet_b6": Model("efficientnet", efficientnet(1.8, 2.6, 2304, [31]), 528, 43.0, 19.0, TAN),
    "bert_base": _text("bert", bert(768, 12, 12), 110, f"Devlin et al. 2019; {TINY}", 11.25),
    "bert_large": _text("bert", bert(1024, 24, 16), 340, "Devlin et al. 2019"),
    "albert_base": _text("albert", albert(768, 12, 12, 3072), 12, LAN),
    "albert_large": _text("albert", albert(1024, 24, 16, 4096), 18, LAN),
    "albert_xlarge": _text("albert", albert(2048, 24, 16, 8192), 60, LAN),
    "albert_xxlarge": _text("albert", albert(4096, 12, 64, 16384), 235, LAN),
    "elmo": _text("elmo", language.Elmo, 93.6, "AllenNLP's table of ELMo models", vocabulary=800_000),
    "nnlm_50": _text("nnlm", language.nnlm_50, 48.19, HUB, vocabulary=963_812),
    "nnlm_128": _text("nnlm", language.nnlm_128, 124.64, HUB, vocabulary=973_771),
    "small_bert_tiny": _text("small_bert", bert(128, 2, 2), 4.4, TURC),
    "small_bert_mini": _text("small_bert", bert(256, 4, 4), 11.3, TURC),
    "small_bert_small": _text("small_bert", bert(512, 4, 8), 29.1, f"{TURC}; {TINY}", 1.7),
    "small_bert_medium": _text("small_bert", bert(512, 8, 8), 41.7, TURC),
    "word2vec_250": _text("word2vec", language.word2vec_250, 252.3, HUB, vocabulary=1_009_375),
    "word2vec_500": _text("word2vec", language.word2vec_500, 504.7, HUB, vocabulary=1_009_375),
    "electra_small": _text("electra", electra(256, 4, 128), 14, "Clark et al. 2020, Table 1"),
    "electra_base": _text("electra", electra(768, 12, 768), 110, "Clark et al. 2020, Table 1"),
    "use_dan": _text("use", language.use_dan, 256.8, HUB, vocabulary=799_000),
    "use_transformer": _text("use", language.use_transformer, 147.35, HUB, vocabulary=250_000),
    "use_multilingual_cnn": _text("use", language.use_multilingual_cnn, 68.93, HUB, vocabulary=125_000),
    "use_multilingual_transformer": _text("use", language.use_multilingual_transformer, 85.21, HUB, vocabulary=128_000),
}  # fmt: skip

MODERN: dict[str, Model] = {
    "vit_base": Model(
        "vit",
        build("ViTForImageClassification", "ViTConfig", logits, num_labels=1000),
        224, 86.57, 17.56, TORCHVISION, fixed=True,
    ),
    "convnext_tiny": Model(
        "convnext",
        build("ConvNextForImageClassification", "ConvNextConfig", logits, num_labels=1000),
        224, 28.59, 4.46, TORCHVISION,
    ),
    "distilbert": _text("bert", build("DistilBertModel", "DistilBertConfig", first_place), 67, TINY, 5.65),
    "t5_small": _text(
        "t5",
        build("T5EncoderModel", "T5Config", mean_place, num_layers=6, num_heads=8),
        35.33, "the 60 M of Raffel et al. 2020 less the decoder",
    ),
    "whisper_tiny": Model(
        "whisper",
        build("WhisperModel", "WhisperConfig", mean_place, "get_encoder", encoder_layers=4, encoder_attention_heads=6,
              decoder_layers=4, decoder_attention_heads=6, d_model=384, encoder_ffn_dim=1536, decoder_ffn_dim=1536),
        3000, 8.2, None, "the 39 M of Radford et al. 2022 less the decoder", "sound", fixed=True,
    ),
    "gpt2_distilled": _text(
        "gpt", build("GPT2LMHeadModel", "GPT2Config", next_token, n_layer=6), 82, "DistilGPT2's card"
    ),
}  # fmt: skip

MODELS = PAPER | MODERN
