"""Architectures whose configuration `transformers` has: the published sizes, with random weights."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import transformers
from torch import Tensor, nn

Pick = Callable[[Any], Tensor]


class Answering(nn.Module):
    """A `transformers` model of which one tensor, (b, width), is the answer."""

    def __init__(self, network: nn.Module, pick: Pick) -> None:
        super().__init__()
        self.network, self.pick = network, pick

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...) -> (b, width)."""
        return self.pick(self.network(x))


def logits(out: Any) -> Tensor:
    """What a classifier answers, (b, classes)."""
    found: Tensor = out.logits
    return found


def first_place(out: Any) -> Tensor:
    """What stands at an encoder's first place, (b, width)."""
    found: Tensor = out.last_hidden_state[:, 0]
    return found


def mean_place(out: Any) -> Tensor:
    """The mean of all places, (b, width)."""
    found: Tensor = out.last_hidden_state.mean(1)
    return found


def next_token(out: Any) -> Tensor:
    """Logits of what follows the last place, (b, vocabulary)."""
    found: Tensor = out.logits[:, -1]
    return found


def _answering(model: str, config: str, pick: Pick, part: str, **settings: Any) -> nn.Module:
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return Answering(getattr(made, part)() if part else made, pick)


def build(model: str, config: str, pick: Pick, part: str = "", **settings: Any) -> Callable[[], nn.Module]:
    """A builder of `model(config(**settings))`, both by their names in `transformers`.

    Args:
        model: Class of the model.
        config: Class of its configuration, whose defaults are the published ones where `settings` say nothing.
        pick: Takes the answer from the model's output.
        part: A method of the model that gives the part that is served, such as `get_encoder`.
        settings: Of the configuration.
    """
    return partial(_answering, model, config, pick, part, **settings)


def bert(width: int, layers: int, heads: int) -> Callable[[], nn.Module]:
    """BERT (Devlin et al. 2019) and its small forms (Turc et al. 2019)."""
    size: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return build("BertModel", "BertConfig", first_place, intermediate_size=4 * width, **size)


def albert(width: int, layers: int, heads: int, inner: int) -> Callable[[], nn.Module]:
    """ALBERT (Lan et al. 2020, Table 1)."""
    size: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }
    return build("AlbertModel", "AlbertConfig", first_place, embedding_size=128, **size)


def electra(width: int, heads: int, embedding: int) -> Callable[[], nn.Module]:
    """ELECTRA's discriminator (Clark et al. 2020, Table 6)."""
    size: dict[str, Any] = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return build("ElectraModel", "ElectraConfig", first_place, embedding_size=embedding, num_hidden_layers=12, **size)


def resnet(*depths: int) -> Callable[[], nn.Module]:
    """ResNet (He et al. 2016) of bottlenecks."""
    return build("ResNetForImageClassification", "ResNetConfig", logits, depths=list(depths), num_labels=1000)


def efficientnet(wide: float, deep: float, out: int, odd: Sequence[int] = ()) -> Callable[[], nn.Module]:
    """EfficientNet (Tan and Le 2019): factors of width and depth, and the channels before the classifier.

    `odd` lists the blocks that halve a side which is odd at the published size: they are padded alike on both sides, as
    the original does, or the side would be rounded down.
    """
    size: dict[str, Any] = {"width_coefficient": wide, "depth_coefficient": deep, "hidden_dim": out, "num_labels": 1000}
    size["depthwise_padding"] = list(odd)
    return build("EfficientNetForImageClassification", "EfficientNetConfig", logits, **size)
