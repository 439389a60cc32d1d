"""Which deployment comes next, and what it costs: by hand."""

from typing import Any

from morphling_ray.measurement import Measurement
from morphling_ray.objective import Prices, ServingObjective
from morphling_ray.search.deployments import Deployments
from morphling_ray.search.morphling import MorphlingSampler
from morphling_ray.space import Configuration, Knob, SearchSpace

SPACE = SearchSpace([Knob("cpu_cores", (1, 2, 4)), Knob("max_batch_size", (1, 8))])
RPS = ServingObjective("rps", Prices(base=0.0, cpu_core=1.0, gpu={}))


def measured(cores: int, batch: int, peak: float, *, seconds: float = 10.0, **other: Any) -> Measurement:
    configuration: Configuration = {"cpu_cores": cores, "max_batch_size": batch}
    return Measurement(configuration=configuration, metrics={"peak_rps": peak}, timings_s={"probing": seconds}, **other)


def foreseen(cores: int, batch: int, peak: float) -> Measurement:
    configuration: Configuration = {"cpu_cores": cores, "max_batch_size": batch}
    return Measurement(
        configuration=configuration, bounds={"peak_rps": (0.9 * peak, 1.1 * peak)}, noise_sd={"peak_rps": 0.0}
    )


def test_siblings_say_which_knobs_are_free() -> None:
    """Fails if a deployment is taken for another one, or if a new one is not told from a known one."""
    deployments = Deployments(["cpu_cores", "max_batch_size"])
    every = SPACE.configurations
    assert deployments.number(every).tolist() == [0, 1, 2, 3, 4, 5]
    assert not deployments.new(every).any()  # a trial tells of nothing but its own configuration
    assert len(set(deployments.relative_seconds(every))) == 1
    deployments.tell(measured(1, 8, 100.0, siblings=(foreseen(1, 1, 50.0),)))
    assert deployments.free == ("max_batch_size",)
    assert deployments.number(every).tolist() == [0, 0, 1, 1, 2, 2]
    assert deployments.new(every).tolist() == [False, False, True, True, True, True]
    assert deployments.relative_seconds(every).tolist() == [1.0, 1.0, 2.0, 2.0, 2.0, 2.0]


def test_what_a_new_deployment_costs_is_learned() -> None:
    """Fails if seconds are not told apart by whether the deployment was up, or count trials that failed."""
    deployments = Deployments(["cpu_cores", "max_batch_size"], ["max_batch_size"])
    deployments.tell(measured(1, 8, 100.0, seconds=12.0))
    deployments.tell(measured(1, 1, 100.0, seconds=3.0))
    failed: Configuration = {"cpu_cores": 4, "max_batch_size": 1}
    deployments.tell(Measurement(configuration=failed, infeasible_because="no", timings_s={"deploying": 500.0}))
    assert deployments.relative_seconds(SPACE.configurations).tolist() == [4.0, 4.0, 4.0, 4.0, 1.0, 1.0]


def test_a_new_deployment_is_tried_for_what_all_of_it_may_bring() -> None:
    """Fails if the search stays on a deployment of which everything is known, or goes where nothing can be gained."""
    sampler = MorphlingSampler(SPACE, RPS, seed=0)
    asked: list[Configuration] = []
    truth = {(1, 1): 50.0, (1, 8): 100.0, (2, 1): 95.0, (2, 8): 190.0, (4, 1): 170.0, (4, 8): 340.0}
    for _ in range(3):
        configuration = sampler.suggest()
        assert configuration is not None
        asked.append(configuration)
        cores = int(configuration["cpu_cores"])
        best = measured(cores, 8, truth[cores, 8], siblings=(foreseen(cores, 1, truth[cores, 1]),))
        sampler.observe(best.configuration, best)
        (sibling,) = best.siblings
        if configuration == sibling.configuration:
            sampler.observe(configuration, sibling)
        else:
            sampler.foresee(sibling.configuration, sibling)
    assert asked[0]["cpu_cores"] != asked[1]["cpu_cores"]
    assert 4 in {c["cpu_cores"] for c in asked}
    found = sampler.recommend()
    assert found is not None
    assert found.configuration == {"cpu_cores": 4, "max_batch_size": 8}
