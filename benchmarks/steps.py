"""What lies between two configurations besides measuring: `python -m benchmarks.steps`.

Live: batch size and wait of the demo change, as a trial does it. Restart: the number of its replicas' cores changes.
Beside it a bare `serve.run` of the same application, which restarts the replica on any change.
"""

import sys
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.bench import keep, percentiles, serving
from benchmarks.peak import CONFIGURATION

LIVE, RESTARTS = 20, 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints; returns 0."""
    seconds: dict[str, list[float]] = {"live": [], "restart": [], "serve.run": []}

    def timed(kind: str, began: float) -> None:
        seconds[kind].append(time.monotonic() - began)

    with serving() as (_, evaluator, _say):
        deployer = evaluator.stand.deployer
        deployer.deploy(CONFIGURATION)
        for i in range(LIVE):
            began = time.monotonic()
            deployer.deploy({**CONFIGURATION, "max_batch_size": 4 + 4 * (i % 2)})
            timed("live", began)
        for i in range(RESTARTS):
            began = time.monotonic()
            deployer.deploy({**CONFIGURATION, "cpu_cores": 2 - i % 2})
            problem, _answer = evaluator.stand.crew.ask(30.0)
            assert not problem, problem
            timed("restart", began)
        deployer.delete(wait=True)

        from ray import serve

        from morphling_ray.serving.demo import app
        from morphling_ray.serving.images import image_request

        for _ in range(RESTARTS + 1):
            began = time.monotonic()
            serve.run(app, name="bare", route_prefix="/bare").remote(image_request()).result()
            timed("serve.run", began)
        serve.delete("bare")
    seconds["serve.run"].pop(0)  # the first one starts what the others find
    print(f"live: {percentiles([1e3 * s for s in seconds['live']])} ms")
    for kind in ("restart", "serve.run"):
        print(f"{kind}: {percentiles(seconds[kind])} s")
    print(f"restart / serve.run: {np.median(seconds['restart']) / np.median(seconds['serve.run']):.2f}")
    keep("steps", [seconds], argv or sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
