"""An application that says which GPU Ray has given its replica."""

import os

from ray import serve


@serve.deployment(ray_actor_options={"num_gpus": 1})
class WhichCard:
    def __call__(self) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")


app = WhichCard.bind()
