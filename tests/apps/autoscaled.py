"""An application that Serve scales by itself."""

from ray import serve


@serve.deployment(autoscaling_config={"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 2})
class Web:
    async def __call__(self) -> str:
        return "hello"


app = Web.bind()
