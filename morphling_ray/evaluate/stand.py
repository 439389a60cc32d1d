"""The test stand: where a configuration is served, and loaded from cores that its replicas do not use."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from morphling_ray.evaluate.attempt import Attempt
from morphling_ray.load.client import GRPC
from morphling_ray.load.crew import Crew
from morphling_ray.load.requests import RequestSource
from morphling_ray.measurement import Measurement, Probe, voided
from morphling_ray.objective import Slo
from morphling_ray.serving.application import ApplicationFacts
from morphling_ray.serving.control import ReplicaBatcher, gpu_use
from morphling_ray.serving.daemons import keep_on
from morphling_ray.serving.deployment import Deployer, DeploymentFailed, Replica, free_room, is_local
from morphling_ray.serving.failures import failed_check, last_words, of_requests, under_load
from morphling_ray.serving.knobs import parts_of_gpus
from morphling_ray.serving.limits import cores_of, pin_process, take_core, taken_cores
from morphling_ray.serving.quota import quota_of
from morphling_ray.serving.serve_config import (
    APP_NAME,
    batch_setting,
    expected_replicas,
    fit,
    fractions_of_cores,
    largest_batch,
    replica_resources,
    taken_at_once,
)
from morphling_ray.space import Configuration

WARM_UP_S = 0.4
NO_SUCH_ROUTE = ("HttpError: HTTP 404", "HttpError: HTTP 405")
BESIDE = "rival"  # of the name of an application that is up beside another one


class Stand:
    """A deployer and a crew of drivers for one application in Serve.

    Args:
        facts: The application.
        slo: What windows are judged by.
        source: What requests send.
        root_url: Where Serve's proxy takes requests; None for requests through the Serve handle.
        startup_timeout_s: A candidate that is not up by then is infeasible.
        node_timeout_s: See `Deployer`.
        suffix: Of the application's name and route, where others are served beside it.
        own_ray: The cluster was started for this: its processes keep off the replicas' cores as well.
        node_id: Where replicas have to be, see `Deployer`; this process is there too, and so are the drivers.
        among_others: Other stands may be in use on that node at the same time.
        turns: See `Deployer`.
    """

    def __init__(
        self,
        facts: ApplicationFacts,
        slo: Slo,
        source: RequestSource,
        *,
        root_url: str | None,
        startup_timeout_s: float,
        node_timeout_s: float = 0.0,
        own_ray: bool = False,
        suffix: str = "",
        node_id: str | None = None,
        among_others: bool = False,
        turns: Any = None,
    ) -> None:
        self._among_others = among_others
        self._own_ray, self._suffix, self._turns = own_ray, suffix, turns
        self._home = node_id
        self._facts, self._slo, self._source = facts, slo, source
        self._root_url, self._startup_timeout_s = root_url, startup_timeout_s
        name, prefix = APP_NAME, facts.route_prefix
        if suffix:
            name, prefix = f"{APP_NAME}-{suffix}", f"/{suffix}{prefix}".rstrip("/")
            if root_url is not None and not root_url.startswith(GRPC):
                root_url += f"/{suffix}"
        self.deployer = Deployer(
            facts,
            startup_timeout_s=startup_timeout_s,
            node_timeout_s=node_timeout_s,
            app_name=name,
            route_prefix=prefix,
            node_id=node_id,
            whole_cards=among_others,
            turns=turns,
        )
        self.crew = Crew(name, source, root_url, slo, node_id)
        self.replicas: list[Replica] = []
        self._node_id = ray.get_runtime_context().get_node_id()
        self._all_cores = sorted(os.sched_getaffinity(0))
        # For the drivers, that no replica of another stand is given it; a low one, since those get the high ones first.
        own = next(filter(take_core, self._all_cores), None) if among_others else None
        self._own_cores = {own} if own is not None else set[int]()
        self._moved: list[str] = []  # which of Ray's processes keep off the replicas' cores
        self._parts_of_gpus = False  # whether the replicas were promised some
        self._up_since_us = 0
        self.shared = False
        """Whether the driver has to share the replicas' cores."""

    def bring_up(self, configuration: Configuration) -> bool:
        """Applies a configuration; the driver keeps off its replicas' cores.

        Returns:
            Whether there are new replicas.

        Raises:
            DeploymentFailed: See `Deployer.deploy`; nothing is up then.
        """
        self.crew.mend()
        before = self.replicas
        try:
            self.replicas = self.deployer.deploy(configuration)
        except DeploymentFailed:
            self.clear()
            raise
        if self.replicas == before:
            if self._among_others:  # who may have come or gone meanwhile
                self._keep_driver_away()
            return False
        self._keep_driver_away()
        self._parts_of_gpus = parts_of_gpus(self._facts, configuration)
        self._up_since_us = time.time_ns() // 1000
        return True

    def ready(self, attempt: Attempt) -> Probe | str:
        """Brings a configuration up, and fills it with its usual batches in a closed loop.

        Returns:
            What the closed loop showed, or the reason that there is nothing to measure.
        """
        with attempt.watch.stage("deploying"):
            try:
                new = self.bring_up(attempt.configuration)
            except DeploymentFailed as failure:
                attempt.details["log"] = failure.log[-4000:]
                return failure.reason
        attempt.details["replicas"] = [
            {"node": r.node_id, "pid": r.pid, "cores": cores_of(r.pid)} for r in self.replicas
        ]
        attempt.details["kept_off_their_cores"] = ["the load driver"] * (not self.shared) + self._moved
        asked = sum(each["CPU"] for each in replica_resources(self._facts, attempt.configuration))
        if self.shared and crowded(asked, len(self._all_cores)):
            note = "the load driver had to share the replicas' cores: this peak is a lower bound"
            attempt.notes += [note] * (note not in attempt.notes)
        with attempt.watch.stage("warming up"):
            if new and (problem := self.first_answer()):
                there = ", ".join(map(str, self._facts.routes)) if problem.startswith(NO_SUCH_ROUTE) else ""
                return f"the first request failed: {problem}" + (f"; it takes {there}" if there else "")
            warm = self.crew.saturate(in_flight=min(self.fill(attempt), 16 * len(self.replicas)), window_s=WARM_UP_S)
        if self._slo.too_many_errors(warm.errors, warm.requests):
            attempt.probes.append(warm)
            return of_requests(warm.reason, largest_batch(attempt.configuration, 1))
        if new and (problem := self._gpu_problem()):
            self.clear()  # the next configuration is not to be measured on these
            return f"the GPU limits are not in force: {problem}"
        self._note_quotas(attempt)
        return warm

    def first_answer(self) -> str:
        """Sends the first request to what was brought up; returns what went wrong, if anything did.

        Some load their model only then, so it may take as long as a start.
        """
        problem: str = self.crew.ask(max(self._startup_timeout_s, 2 * self._slo.latency_s))[0]
        return problem

    def _gpu_problem(self) -> str:
        """Why parts of GPUs that were promised are not in force; empty where they are, or none were promised."""
        if not self._parts_of_gpus:
            return ""
        used = [gpu_use(r.actor_name, 0) for r in self.replicas]
        if not any(used):
            return "no replica has a GPU"
        return next((str(use["problem"]) for use in used if use.get("problem")), "")

    def _note_quotas(self, attempt: Attempt) -> None:
        """Says where a fraction of a core could not be enforced; on this machine, as others cannot be looked at."""
        expected = fractions_of_cores(self._facts, attempt.configuration)
        local = self._local()
        if len(local) == len(self.replicas) and sum(quota_of(pid) is not None for pid in local) < expected:
            attempt.notes.append("fractions of a core are not enforced here (no control group may be made): whole ones")

    def fill(self, attempt: Attempt) -> int:
        """Requests in flight that fill the batches of all replicas, with another batch waiting in them."""
        return max(4, min(2 * largest_batch(attempt.configuration) * len(self.replicas), self.slots(attempt)))

    def slots(self, attempt: Attempt) -> int:
        """Requests that all replicas take at once: Serve's router asks again only now and then where more wait."""
        return taken_at_once(self._facts, attempt.configuration)

    def batches_alike(self, one: Configuration, other: Configuration) -> bool:
        """Whether two configurations form batches by the same settings, and share requests among as many replicas."""
        settings = [batch_setting(self._facts, c) for c in (one, other)]
        replicas = [expected_replicas(self._facts, c) for c in (one, other)]
        return settings[0] == settings[1] and replicas[0] == replicas[1]

    def settle(self) -> None:
        """Waits until nothing is left of requests that were given up; what waits in our batchers is dropped."""
        if self.crew.record is None or not self.crew.record.given_up:
            return
        for replica in self.replicas:
            if (batcher := ReplicaBatcher.find(replica.actor_name)) is not None:
                batcher.drop()
        self.crew.drain()

    def intact(self) -> bool:
        """Whether the very replicas that were brought up are still there; Serve itself takes seconds to see a death."""
        return self.deployer.replicas() == self.replicas and not self._dead()

    def steady(self, measure: Callable[[], Measurement], attempt: Callable[[], Attempt]) -> Measurement:
        """A measurement of the same replicas by the same drivers to its end: otherwise it is void, and made once more.

        Args:
            measure: Makes it.
            attempt: The attempt that it belongs to; asked where it is void.
        """
        words = unhealthy = ""
        for number in (1, 2):
            try:
                measurement = measure()
                if not self.replicas or self.intact():
                    self._read_gpus(attempt())
                    return measurement
            except Exception:  # what is gone may show anywhere
                if self.crew.mend():
                    attempt().notes.append(voided(number, "a load driver was lost while it measured"))
                    continue
                if not self.replicas or self.intact():
                    raise
            attempt().notes.append(voided(number, "a replica was replaced while it was measured"))
            unhealthy = failed_check(_logs(), [r.actor_name.rpartition("#")[2] for r in self.replicas]) or unhealthy
            if self._dead():
                words = self._last_words()
                self.clear()
        ended = attempt()
        if self.replicas and self.intact():
            return ended.measurement(infeasible_because="the load drivers were lost, twice")
        error = unhealthy or next((p.reason for p in ended.probes[::-1] if p.errors), "")
        ended.details["log"] = words
        return ended.measurement(infeasible_because=under_load(error, largest_batch(ended.configuration, 1)))

    def _read_gpus(self, attempt: Attempt) -> None:
        """Keeps what replicas used of GPUs beside what they were promised."""
        if any(resources["GPU"] for resources in replica_resources(self._facts, attempt.configuration)):
            used = [use for r in self.replicas if (use := gpu_use(r.actor_name, self._up_since_us))]
            attempt.details["gpus"] = used

    def clear(self) -> None:
        """Takes everything down, so that nothing of it is left when the next configuration is brought up."""
        self.deployer.delete(wait=True)
        self.replicas = []

    def _last_words(self) -> str:
        """Of the replicas on this machine that are gone."""
        return "\n".join(words for r in self._dead() if (words := last_words(_logs(), r.pid)))

    def _dead(self) -> list[Replica]:
        """Replicas of this machine whose process is gone."""
        return [r for r in self.replicas if r.node_id == self._node_id and not is_local(r, self._node_id)]

    @contextmanager
    def beside(self, configuration: Configuration) -> Iterator["Stand | None"]:
        """Another stand with a configuration up beside this one's; None where there is no room, or it does not come up.

        Where both have as many cores on this machine they share them: only one is under load at a time, and two cores
        are never quite alike.
        """
        if not self._room_for(configuration):
            yield None
            return
        other = Stand(
            self._facts,
            self._slo,
            self._source,
            root_url=self._root_url,
            startup_timeout_s=self._startup_timeout_s,
            own_ray=self._own_ray,
            suffix=f"{self._suffix}-{BESIDE}".lstrip("-"),
            node_id=self._home,
            turns=self._turns,
        )
        other._all_cores = self._all_cores  # this process may be confined by now
        other.crew.probes = self.crew.probes  # whoever watches sees both
        try:
            try:
                other.bring_up(configuration)
            except DeploymentFailed:
                yield None
                return
            mine, theirs = self._local(), other._local()
            if len(mine) == len(theirs) and [len(c) for c in mine.values()] == [len(c) for c in theirs.values()]:
                for pid, cores in zip(theirs, mine.values()):
                    pin_process(pid, cores)
                other._keep_driver_away()
            yield other
        finally:
            other.close(wait=True)
            self._keep_driver_away()  # the other one has set Ray's own processes free

    def close(self, *, wait: bool = False) -> None:
        """Takes the application and the drivers down; Ray's processes may use all cores again."""
        if self._own_ray:
            keep_on(self._all_cores)
        self.crew.close()
        self.deployer.delete(wait=wait)

    def _local(self) -> dict[int, list[int]]:
        """Cores of each replica on this machine, by process."""
        return {r.pid: cores_of(r.pid) for r in self.replicas if is_local(r, self._node_id)}

    def _keep_driver_away(self) -> None:
        taken = {core for cores in self._local().values() for core in cores}
        if self._among_others:
            taken |= taken_cores() - self._own_cores
        free = [core for core in self._all_cores if core not in taken]
        self.crew.pin(free or self._all_cores)
        self.shared = not free
        if self._own_ray:
            moved = keep_on(free or self._all_cores)
            self._moved = moved if free else []

    def _room_for(self, configuration: Configuration) -> bool:
        """Whether nodes have what its replicas ask for, each on one node; two candidates never share a GPU."""
        if self._parts_of_gpus or parts_of_gpus(self._facts, configuration):
            return False
        return fit(replica_resources(self._facts, configuration), free_room(self._home))


def crowded(asked: float, cores: int) -> bool:
    """Whether a driver takes something from replicas that may run on all cores of its machine, as it may.

    Not where, by what they ask for, they and it have work for half of the machine at the most.
    """
    return asked + 1 > cores / 2


def _logs() -> Path:
    """Ray's log folder of this machine."""
    return Path(ray._private.worker._global_node.get_logs_dir_path())
