"""The zoo as Serve applications, one name each. The knobs are those of the demo."""

from morphling_ray.serving.demo import space
from morphling_ray.serving.torch_server import application

__all__ = ["space"]

mobile_cnn = application("experiments.zoo.models:mobile_cnn_model", name="MobileCnn")
plain_cnn = application("experiments.zoo.models:plain_cnn_model", name="PlainCnn")
mixer = application("experiments.zoo.models:mixer_model", name="Mixer")
text_encoder = application("experiments.zoo.models:text_encoder_model", name="TextEncoder")
recurrent = application("experiments.zoo.models:recurrent_model", name="Recurrent")
ranker = application("experiments.zoo.models:ranker_model", name="Ranker")
