"""What a run searches: the space, the objective, how it is measured, and what a result means in the end.

Two kinds, alike to everything else: a Serve application, and a task of a recorded set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from morphling_ray.cluster import Cluster, quoted_python
from morphling_ray.errors import InputError
from morphling_ray.experiment import DEMO, Experiment
from morphling_ray.load.requests import RequestSource, is_call, is_grpc, is_http, is_inline, read_request
from morphling_ray.objective import ExpressionObjective, Objective, Prices, ServingObjective
from morphling_ray.space import Configuration, SearchSpace

if TYPE_CHECKING:
    from morphling_ray.evaluate.room import Replicas
    from morphling_ray.serving.costs import ApplicationCosts

ENOUGH_TRIALS = 5  # with fewer, each goes to what the user listed
UNITS = {"rps": "RPS", "rps_per_dollar": "RPS per $/h", "cheapest": "$/h"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search needs to know.

    Attributes:
        space: All configurations that the cluster can hold.
        objective: What is maximised.
        unit: Unit of the objective as it is reported.
        initial: Measured first: the application's present configuration, where it is known.
        make_evaluator: Called in the lane's process with `arguments`.
        arguments: Keyword arguments.
        notes: What the user should know about the plan.
        needs: Ray resources of each replica of a configuration; None where nothing is served.
        kinds: The different ones of the whole space.
    """

    space: SearchSpace
    objective: Objective
    unit: str
    initial: tuple[Configuration, ...]
    make_evaluator: Callable[..., Any]
    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()
    needs: Callable[[Configuration], list[dict[str, float]]] | None = None
    kinds: "Sequence[Replicas]" = ()


class Target(Protocol):
    """A Serve application or a recorded task."""

    needs_serve: bool

    def plan(self, cluster: Cluster, *, one_node: bool = False) -> Plan:
        """What to search on this cluster.

        Args:
            cluster: What there is.
            one_node: Leave out what takes several nodes.

        Raises:
            InputError: The cluster lacks what the space asks for.
        """
        ...

    def cost_per_hour(self, configuration: Configuration) -> float | None:
        """Dollars an hour of one copy; None where there are no prices."""
        ...

    def burden(self, configuration: Configuration) -> tuple[float, ...]:
        """What to prefer the less of: its cost, then what it takes of resources; empty where there are no prices."""
        ...

    def serve_config(
        self, configuration: Configuration, header: str, *, scale: tuple[int, float | None] = (1, None)
    ) -> str | None:
        """The Serve config as text; None where there is nothing to deploy.

        Args:
            configuration: What is recommended.
            header: Comment lines to begin with.
            scale: Copies of it, and requests in flight at each that leave its peak some headroom.
        """
        ...

    def difference(self, config: str) -> str:
        """A Serve config as a diff to the user's own; empty where there is none."""
        ...


class ServeTarget:
    """A Serve application, measured online.

    Args:
        experiment: The settings.

    Raises:
        InputError: The application, the requests, the prices or the space cannot work.
    """

    needs_serve = True

    def __init__(self, experiment: Experiment) -> None:
        from morphling_ray.load.loadgen import available as loadgen_available
        from morphling_ray.serving.application import inspect_app
        from morphling_ray.serving.knobs import check_knobs, with_present_secrets

        self._experiment = experiment
        self._prices = Prices.load(experiment.prices)
        python = quoted_python() if experiment.address is None else None  # other machines have paths of their own
        self.facts = replace(inspect_app(experiment.app), py_executable=python, mps=experiment.mps)
        self.source, self.proxy = self._requests()
        if experiment.loadgen and not loadgen_available():
            raise InputError("--loadgen needs MLPerf LoadGen: pip install 'morphling-ray[loadgen]'")
        self._declared = experiment.search_space() if experiment.space is not None else None
        self._price_notes: tuple[str, ...] = ()
        named: set[Any] = {each.gpu_type for each in self.facts.deployments.values()}
        if self._declared is not None:
            named |= {v for knob in self._declared.knobs if knob.name.endswith("gpu_type") for v in knob.values}
        self._know_prices({str(kind) for kind in named if kind})
        if self._declared is not None:
            check_knobs(self._declared.knobs, self.facts)
            self.facts = replace(self.facts, secrets=with_present_secrets(experiment.secrets, self.facts))
            self._costs(self._declared).cost_per_hour(self._declared.columns)  # a GPU type without a price raises
        self.root_url: str | None = None  # of the proxy, once Serve runs
        self._priced: ApplicationCosts | None = None  # of the planned space

    def _requests(self) -> tuple[RequestSource, str | None]:
        """What requests send, and through which proxy of Serve (`http`, `grpc`); None for the Serve handle."""
        from morphling_ray.serving.application import resolve_app, usual_request

        text, folder = self._experiment.request, self.facts.folder
        if text is None and self.facts.default_request is not None:
            source = RequestSource(function=self.facts.default_request, folder=folder)
        elif text is None:
            source = RequestSource(values=(usual_request(self.facts, "GET") if self.facts.wants_http else None,))
        elif is_inline(text) or text.endswith((".json", ".jsonl")) or Path(text).is_file():
            source = RequestSource(values=tuple(read_request(text)))
        elif ".py:" in text:
            function, beside = resolve_app(text, "--request")
            source = RequestSource(function=function, folder=beside)
        else:
            source = RequestSource(function=text, folder=folder)
        try:
            first = next(source.payloads())
        except Exception as error:  # a user's function may raise anything
            raise InputError(f"--request {source.function!r}: {type(error).__name__}: {error}") from error
        if is_grpc(first) != (self._experiment.grpc_servicer is not None):
            raise InputError(
                "gRPC takes both: --grpc-servicer MODULE:FUNCTION, and a --request function that returns "
                '{"method": "/package.Service/Method", "message": a protobuf message}'
            )
        if is_grpc(first):
            return source, "grpc"
        if self.facts.methods and not is_call(first) and not is_http(first):
            raise InputError(
                f"{self.facts.ingress} cannot be called itself: --request says which method to call, of "
                f'{", ".join(self.facts.methods)}: {{"call": "{self.facts.methods[0]}", "args": [...]}}'
            )
        if is_call(first):
            return source, None
        if self.facts.wants_http and source.function is None and not all(map(is_http, source.values)):
            post = usual_request(self.facts, "POST")
            posts = [v if is_http(v) else {**post, "json": v} for v in source.values]
            return replace(source, values=tuple(posts)), "http"
        return source, "http" if is_http(first) else None

    def _costs(self, space: SearchSpace, gpu_type: str | None = None) -> "ApplicationCosts":
        from morphling_ray.serving.costs import ApplicationCosts

        return ApplicationCosts(self._prices, self.facts, space.knobs, gpu_type)

    def _know_prices(self, gpu_types: set[str]) -> None:
        """Turns to AWS's prices where the user named none, and the paper's, of 2021, do not know a card."""
        unknown = sorted(gpu_types - set(self._prices.gpu))
        if unknown and self._experiment.prices is None and gpu_types <= set((aws := Prices.load("aws")).gpu):
            self._prices = aws
            say = f"costs are by AWS's prices (--prices aws), since the paper's have none for {', '.join(unknown)}"
            self._price_notes = (say,)

    def start_serve(self, *, everywhere: bool = False) -> bool:
        """Starts Serve on the cluster where it does not run yet; whether it did, and Serve so is ours to shut down.

        Args:
            everywhere: Requests come from all nodes.
        """
        from morphling_ray.serving.deployment import start_serve

        servicer = self._experiment.grpc_servicer
        ours, self.root_url = start_serve(proxy=self.proxy, grpc_servicer=servicer, everywhere=everywhere)
        return ours

    def plan(self, cluster: Cluster, *, one_node: bool = False) -> Plan:
        """See `Target`."""
        from morphling_ray.evaluate.online import OnlineEvaluator
        from morphling_ray.evaluate.room import different
        from morphling_ray.serving.default_space import default_space
        from morphling_ray.serving.knobs import check_knobs, undeclared_limits
        from morphling_ray.serving.serve_config import fit, replica_resources, total

        space = self._declared or default_space(self.facts, cluster.largest_cpus)
        check_knobs(space.knobs, self.facts)
        replicas = [replica_resources(self.facts, c) for c in space.configurations]
        needs = [total(each) for each in replicas]
        least: dict[frozenset[str], dict[str, float]] = {}  # by the types of GPU; what needs more is left out below
        for needed in needs:
            of = frozenset(needed) - {"CPU", "GPU"}
            least[of] = min(needed, least.get(of, needed), key=lambda n: n.get("GPU", 0.0))
        for needed in least.values():
            cluster.check(needed)
        held = [
            (c, each)
            for c, each, needed in zip(space.configurations, replicas, needs, strict=True)
            if cluster.can_hold(needed)
            and all(replica["CPU"] <= cluster.largest_cpus for replica in each)
            and (not one_node or any(fit(each, [node]) for node in cluster.all_nodes))
        ]
        if not held:
            smallest = min(needs, key=lambda n: (n.get("GPU", 0.0), n["CPU"]))
            other = {name: amount for name, amount in smallest.items() if name not in ("CPU", "GPU")}
            beside = f", beside {', '.join(f'{amount:g} of {name}' for name, amount in other.items())}" if other else ""
            raise InputError(
                f"no configuration of the space fits the cluster, whose largest node has {cluster.largest_cpus} cores: "
                f"the smallest takes {smallest['CPU']:g} for its replicas{beside}; give deployments that hardly "
                'compute less, ray_actor_options={"num_cpus": 0.1} say'
            )
        notes: tuple[str, ...] = ()
        if len(held) < len(space):
            what = "one node" if one_node else "the cluster"
            notes = (f"{len(space) - len(held)} of {len(space)} configurations need more than {what} has",)
            space = SearchSpace(space.knobs, space.constraints, [c for c, _ in held])
        present, more = self._present(space, cluster, one_node=one_node)
        notes += more
        if raised := undeclared_limits(space.knobs, self.facts):
            notes += (
                f"{', '.join(raised)} declares no max_ongoing_requests: what is measured, the present configuration "
                f"too, has 100 or more, where Serve's own default would be the limit",
            )
        kind = self._gpu_type(cluster) if any(each.get("GPU") for each in needs) else None
        notes += self._price_notes
        self._priced = self._costs(space, kind)
        self._priced.cost_per_hour(space.columns)  # raises
        objective = ServingObjective(
            self._experiment.objective,
            self._priced,
            self._experiment.target_rps,
            descriptors=self._experiment.descriptors,
        )
        return Plan(
            space=space,
            objective=objective,
            unit=UNITS[objective.name],
            initial=(present,) if present is not None else (),
            make_evaluator=OnlineEvaluator,
            arguments={
                "facts": self.facts,
                "slo": self._experiment.slo(),
                "source": self.source,
                "root_url": self.root_url,
                "closed_loop": self._experiment.closed_loop,
                "own_ray": cluster.local,
                "seed": self._experiment.seed,
                "startup_timeout_s": self._experiment.startup_timeout,
                "node_timeout_s": self._experiment.node_timeout if cluster.to_come else 0.0,
                "space": space,
            },
            notes=notes,
            needs=partial(replica_resources, self.facts),
            kinds=different(each for _, each in held),
        )

    def _gpu_type(self, cluster: Cluster) -> str | None:
        """What a GPU is priced as where the application names no type: the cluster's only one.

        Where money does not matter, a type without a price costs nothing, and that is said.
        """
        kind = cluster.gpu_types[0] if len(cluster.gpu_types) == 1 else None
        if kind is None:
            return None
        self._know_prices({kind})
        if kind not in self._prices.gpu and self._experiment.objective == "rps":
            self._price_notes = (f"the cost is without the GPU: there is no price for {kind}",)
            return None
        return kind

    def _present(
        self, space: SearchSpace, cluster: Cluster, *, one_node: bool
    ) -> tuple[Configuration | None, tuple[str, ...]]:
        """The application's present configuration, where it is known and fits, and what is to be said of it."""
        from morphling_ray.serving.knobs import present_configuration
        from morphling_ray.serving.serve_config import fit, replica_resources, total

        present = present_configuration(space.knobs, self.facts)
        if present is None or present in space:
            return present, ()
        if self._experiment.max_trials < ENOUGH_TRIALS:
            return None, ()
        replicas = replica_resources(self.facts, present)
        if not cluster.can_hold(total(replicas)) or (
            one_node and not any(fit(replicas, [n]) for n in cluster.all_nodes)
        ):
            return None, ("the present configuration needs more than the cluster has: it is not measured",)
        return present, ("the present configuration is not in the space: it is measured, to be compared with",)

    def cost_per_hour(self, configuration: Configuration) -> float | None:
        """See `Target`."""
        return float(self._priced.cost_per_hour(configuration)) if self._priced is not None else None

    def burden(self, configuration: Configuration) -> tuple[float, ...]:
        """See `Target`."""
        if self._priced is None:
            return ()
        return float(self._priced.cost_per_hour(configuration)), float(self._priced.takes(configuration))

    def serve_config(
        self, configuration: Configuration, header: str, *, scale: tuple[int, float | None] = (1, None)
    ) -> str | None:
        """See `Target`."""
        from morphling_ray.serving.config_file import edited
        from morphling_ray.serving.serve_config import Scale, edits, serve_config

        if self.facts.config_file is not None:
            return header + edited(*self.facts.config_file, edits(self.facts, configuration, Scale(*scale)))
        servicer = self._experiment.grpc_servicer
        config = serve_config(self.facts, configuration, grpc_servicer=servicer, scale=Scale(*scale))
        return header + yaml.safe_dump(config, sort_keys=False)

    def difference(self, config: str) -> str:
        """See `Target`."""
        from morphling_ray.serving.config_file import difference

        return difference(self.facts.config_file[0], config) if self.facts.config_file is not None else ""

    @property
    def is_demo(self) -> bool:
        """Whether this is the bundled demo."""
        return self.facts.import_path == DEMO


class ReplayTarget:
    """One task of a recorded set, looked up instead of measured.

    Args:
        experiment: The settings.

    Raises:
        InputError: The folder, the task or the objective cannot be found or read.
    """

    needs_serve = False

    def __init__(self, experiment: Experiment) -> None:
        from morphling_ray.surface import load_surfaces

        self._experiment = experiment
        task = experiment.task or ""  # Experiment has checked that it is there, and so the objective's name
        surfaces = load_surfaces(Path(experiment.replay or ""))
        self._surface = surfaces.task(task)
        self._objective: ExpressionObjective = surfaces.objective(experiment.objective_name or "", task)

    def plan(self, cluster: Cluster, *, one_node: bool = False) -> Plan:
        """See `Target`."""
        from morphling_ray.evaluate.replay import ReplayEvaluator

        return Plan(
            space=self._surface.space,
            objective=self._objective,
            unit=self._experiment.objective_name or "",
            initial=(),
            make_evaluator=ReplayEvaluator,
            arguments={"surface": self._surface, "objective": self._objective, "seed": self._experiment.seed},
        )

    def cost_per_hour(self, configuration: Configuration) -> float | None:
        """See `Target`."""
        return None

    def burden(self, configuration: Configuration) -> tuple[float, ...]:
        """See `Target`."""
        return ()

    def serve_config(
        self, configuration: Configuration, header: str, *, scale: tuple[int, float | None] = (1, None)
    ) -> str | None:
        """See `Target`."""
        return None

    def difference(self, config: str) -> str:
        """See `Target`."""
        return ""
