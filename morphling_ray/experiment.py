"""The experiment: what the flags and the experiment file say together, checked before anything is started.

Every flag of `python -m morphling_ray.tune` is a key of the file, with underscores; a flag beats the file. Paths in the
file are relative to it.
"""

import argparse
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from morphling_ray.errors import InputError
from morphling_ray.load.requests import is_inline, with_full_paths
from morphling_ray.masking import hidden, is_secret
from morphling_ray.objective import BUNDLED_PRICES, ServingObjective, Slo
from morphling_ray.serving.config_file import split
from morphling_ray.space import Knob, SearchSpace
from morphling_ray.store import RunDirectory

MPS_MODES = ("auto", "on", "off")
DEMO = "morphling_ray.serving.demo:app"
MARKER = "morphling_ray"  # the key by which a run directory's experiment.yaml is known to be ours


def _flag(help_text: str, *, default: Any = None, metavar: str | None = None, kind: type = str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help_text, "metavar": metavar, "kind": kind, **more})


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All settings of a run. The field metadata is what the command line is made of."""

    app: str = _flag(
        "the Serve application to tune, or a Serve config that names it (default: the bundled demo)",
        default=DEMO,
        metavar="MODULE:APP|FILE.yaml[:NAME]",
    )
    request: str | None = _flag(
        "what requests send: JSON, a file of it, JSON lines sent in turn, or a function (default: the module's own "
        "`request`)",
        metavar="FILE.json|FILE.jsonl|JSON|MODULE:FUNCTION",
    )
    grpc_servicer: str | None = _flag(
        "requests are gRPC calls, for the service that this function adds to a server", metavar="MODULE:FUNCTION"
    )
    closed_loop: bool = _flag(
        "load is a number of requests in flight, as many as meet the SLO, instead of Poisson arrivals",
        default=False,
        kind=bool,
    )
    searcher: str = _flag(
        "how the next configuration is chosen: morphling, gp, random, ..., all in docs/searchers.md",
        default="morphling",
        metavar="NAME",
    )
    max_trials: int = _flag("trials at most", default=12, metavar="N", kind=int)
    stop_probability: float | None = _flag(
        "end the search once it stays sure, with probability P, to be within 5 %% of the best (default: never)",
        metavar="P",
        kind=float,
    )
    time_budget: float | None = _flag("start no trial after this many seconds", metavar="S", kind=float)
    slo_p99_ms: float = _flag("the SLO: 99 %% of requests answered within X ms", default=100.0, metavar="X", kind=float)
    slo_p50_ms: float | None = _flag(
        "the SLO: and half of the requests within Y ms (default: no bound)", metavar="Y", kind=float
    )
    slo_p99_ttft_ms: float | None = _flag(
        "the SLO of streamed answers, instead of --slo-p99-ms: the first token within X ms", metavar="X", kind=float
    )
    slo_p99_tpot_ms: float | None = _flag(
        "the SLO of streamed answers: and each token after that within Y ms, in the mean of an answer",
        metavar="Y",
        kind=float,
    )
    max_error_rate: float = _flag(
        "the SLO: share of requests that may fail; those are late as well, unless more may fail than be late",
        default=0.01,
        metavar="F",
        kind=float,
    )
    objective: str = _flag(
        "what is maximised (cheapest: lowest cost that sustains --target-rps)",
        default="rps_per_dollar",
        choices=ServingObjective.NAMES,
    )
    target_rps: float | None = _flag("rate to sustain, for the objective cheapest", metavar="R", kind=float)
    prices: str | None = _flag(
        "what resources cost: a file, or the bundled ones of the paper or of AWS (default: paper)",
        metavar="FILE.yaml|paper|aws",
    )
    mps: str = _flag(
        "CUDA MPS, which makes a gpu_share bind: where parts of a GPU are given out, always, or never",
        default="auto",
        choices=MPS_MODES,
    )
    prior: str | None = _flag("what was learned from earlier models (default: the bundled prior)", metavar="FILE")
    address: str | None = _flag("a running Ray cluster (default: a local one, started and ended here)", metavar="ADDR")
    node_types: str | None = _flag(
        "with --address: the file that says which nodes the cluster's autoscaler may add, of Ray or KubeRay (default: "
        "that of `ray up`, on its head node)",
        metavar="FILE.yaml",
    )
    node_timeout: float = _flag(
        "a configuration that has waited S seconds for the autoscaler's nodes is infeasible",
        default=900.0,
        metavar="S",
        kind=float,
    )
    concurrency: int | None = _flag(
        "trials at the same time (default: as many as the nodes take, see --trials-per-node)",
        metavar="N",
        kind=int,
    )
    trials_per_node: int | None = _flag(
        "trials that share a node if it has the cores, and if they do not slow each other down, which is measured "
        "(default: one; where all configurations use GPUs, one for each that a node has)",
        metavar="N",
        kind=int,
    )
    seed: int = _flag("equal seeds give equal proposals", default=0, metavar="N", kind=int)
    run_dir: str | None = _flag("where results go (default: runs/DATE-TIME)", metavar="DIR")
    replay: str | None = _flag("search a folder of recorded surfaces instead of serving", metavar="SURFACES_DIR")
    task: str | None = _flag("the recorded task, with --replay", metavar="NAME")
    objective_name: str | None = _flag("the recorded set's objective, with --replay", metavar="NAME")
    startup_timeout: float = _flag(
        "a configuration that is not up after S seconds is infeasible", default=120.0, metavar="S", kind=float
    )
    loadgen: bool = _flag(
        "measure what is recommended once more with MLPerf LoadGen, a minute (needs the extra [loadgen])",
        default=False,
        kind=bool,
    )
    space: dict[str, list[Any]] | None = None
    constraints: list[str] = field(default_factory=list)
    descriptors: dict[str, float] = field(default_factory=dict)  # of the model, see `objective.Objective`
    # By knob, what the values of the space stand for (masking.py); no setting, and never written with the others.
    secrets: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for entry in fields(self):
            kind, value = entry.metadata.get("kind"), getattr(self, entry.name)
            if value is None and entry.default is None:
                continue
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, entry.name, float(value))
            elif kind is not None and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
                raise InputError(f"{entry.name} must be {_KINDS[kind]}, got {value!r}")
            if value is not None and entry.metadata.get("choices") and value not in entry.metadata["choices"]:
                raise InputError(f"unknown {entry.name} {value!r}; choose {', '.join(entry.metadata['choices'])}")
        for name, least in (("max_trials", 1), ("concurrency", 1), ("trials_per_node", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        for name in ("time_budget", "startup_timeout", "node_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0 seconds, got {value:g}")
        if self.node_types is not None and self.address is None:
            raise InputError("--node-types is of the cluster that --address names")
        if self.stop_probability is not None and not 0 < self.stop_probability < 1:
            raise InputError(f"stop_probability must lie between 0 and 1, got {self.stop_probability:g}")
        object.__setattr__(self, "descriptors", _positive_numbers("descriptors", self.descriptors))
        if self.replay is None and (self.task or self.objective_name):
            raise InputError("--task and --objective-name go with --replay SURFACES_DIR")
        if self.replay is not None and not (self.task and self.objective_name):
            raise InputError("--replay needs --task NAME and --objective-name NAME")
        if self.replay is not None and (self.loadgen or self.closed_loop):
            raise InputError("--loadgen and --closed-loop need a served application: leave --replay out")
        if self.loadgen and self.slo_p50_ms is not None:
            raise InputError("--loadgen knows one bound of latencies: leave --slo-p50-ms out")
        if self.slo().streaming:
            self._check_streaming()
        if self.replay is None and self.objective == "cheapest" and not (self.target_rps and self.target_rps > 0):
            raise InputError("the objective cheapest needs a rate to sustain: --target-rps R, above 0")
        self.slo()  # raises where it makes no sense
        if self.space is not None:
            self.search_space()
            secrets = {n: hidden(n, v, self.secrets.get(n, {})) for n, v in self.space.items() if is_secret(n)}
            object.__setattr__(self, "space", {**self.space, **{n: list(names) for n, names in secrets.items()}})
            object.__setattr__(self, "secrets", secrets)

    def _check_streaming(self) -> None:
        others = {
            "--slo-p50-ms": self.slo_p50_ms is not None,
            "--closed-loop": self.closed_loop,
            "--loadgen": self.loadgen,
            "--grpc-servicer": self.grpc_servicer is not None,
            "--replay": self.replay is not None,
        }
        if given := [name for name, is_given in others.items() if is_given]:
            raise InputError(f"bounds of streamed answers do not go with {', '.join(given)}")

    def slo(self) -> Slo:
        """The bounds that a rate must meet."""
        streaming = self.slo_p99_ttft_ms is not None
        return Slo(
            latency_s=(self.slo_p99_ttft_ms if self.slo_p99_ttft_ms is not None else self.slo_p99_ms) / 1e3,
            percentile=99.0,
            max_error_rate=self.max_error_rate,
            median_s=None if self.slo_p50_ms is None else self.slo_p50_ms / 1e3,
            streaming=streaming,
            tpot_s=None if self.slo_p99_tpot_ms is None else self.slo_p99_tpot_ms / 1e3,
        )

    def search_space(self) -> SearchSpace:
        """The space that the experiment file spells out.

        Raises:
            SpaceError: It is empty or contradicts itself.
        """
        if not isinstance(self.space, Mapping) or not self.space:
            raise InputError(f"space must map knob names to lists of values, got {self.space!r}")
        if not isinstance(self.constraints, list) or not all(isinstance(c, str) for c in self.constraints):
            raise InputError(f"constraints must be a list of comparisons, got {self.constraints!r}")
        return SearchSpace([Knob.infer(str(n), v) for n, v in self.space.items()], self.constraints)

    def to_dict(self) -> dict[str, Any]:
        """All keys, as an experiment file writes them; without secrets."""
        return {name: getattr(self, name) for name in _settings()}


def _positive_numbers(name: str, given: Any) -> dict[str, float]:
    try:
        numbers = {str(key): float(value) for key, value in given.items()}  # YAML takes 25e6 for a text
    except (AttributeError, TypeError, ValueError):
        numbers = {"": 0.0}
    if not all(0 < number < float("inf") for number in numbers.values()):
        raise InputError(f"{name} must map names to numbers above 0, got {given!r}")
    return numbers


def _settings() -> list[str]:
    return [entry.name for entry in fields(Experiment) if entry.name != "secrets"]


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_PATHS = ("prices", "prior", "replay", "run_dir", "request")


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one line instead of its whole usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        self.exit(2, f"morphling_ray: {message}; --help lists all flags\n")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting of an `Experiment`, and `--experiment`."""
    parser.add_argument("--experiment", metavar="FILE.yaml", help="settings by name, and space: {KNOB: [value, ...]}")
    for entry in fields(Experiment):
        if "help" not in entry.metadata:
            continue
        text, name = entry.metadata["help"], "--" + entry.name.replace("_", "-")
        if entry.metadata["kind"] is bool:  # None where it is not given: the file may say it
            parser.add_argument(name, action="store_const", const=True, help=text)
            continue
        if entry.default is not MISSING and entry.default is not None and "default" not in text:
            text += (
                f" (default: {entry.default:g})" if isinstance(entry.default, float) else f" (default: {entry.default})"
            )
        parser.add_argument(
            name,
            type=entry.metadata["kind"],
            metavar=entry.metadata["metavar"],
            choices=entry.metadata.get("choices"),
            help=text,
        )


def resolve(arguments: argparse.Namespace) -> Experiment:
    """The experiment that the flags and the file describe; with `resume` the file is that of the run.

    Raises:
        InputError: A file that cannot be read, an unknown key, a value that makes no sense.
    """
    settings: dict[str, Any] = {}
    resume = getattr(arguments, "resume", None)
    if resume is not None and arguments.experiment is not None:
        raise InputError("--resume has its own experiment.yaml; leave --experiment out")
    file = arguments.experiment if resume is None else Path(resume) / "experiment.yaml"
    if resume is not None and not file.is_file():
        raise InputError(f"--resume {resume}: there is no run to go on with")
    if file is not None:
        settings = read_experiment(Path(file))
    for entry in fields(Experiment):
        value = getattr(arguments, entry.name, None)
        if value is not None:
            settings[entry.name] = str(Path(value).resolve()) if _is_path(entry.name, value) else value
    if getattr(arguments, "request", None) is not None and is_inline(arguments.request):
        settings["request"] = with_full_paths(arguments.request, Path.cwd())
    if resume is not None:
        settings["secrets"] = RunDirectory(Path(resume)).secrets()
    if getattr(arguments, "app", None) is not None:
        settings["app"] = _absolute(arguments.app, Path.cwd())
    return Experiment(**settings)


def _absolute(app: str, folder: Path) -> str:
    """An application that a Serve config names, with the path of that; any other one as it is."""
    config = split(app)
    if config is None:
        return app
    file, name = config
    return str(folder / file) + (f":{name}" if name is not None else "")


def read_experiment(path: Path) -> dict[str, Any]:
    """An experiment file's settings, with its paths made absolute.

    Raises:
        InputError: It cannot be read, or has a key that is no setting.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"experiment file {path}: {error.strerror if isinstance(error, OSError) else error}"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"experiment file {path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if settings is None:
        settings = {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise InputError(f"experiment file {path}: expected `setting: value` lines")
    settings.pop(MARKER, None)
    check_known(settings, f"experiment file {path}: unknown key")
    folder = path.resolve().parent
    if isinstance(settings.get("request"), (dict, list)):  # the request itself, as the file's own kind of value
        settings["request"] = json.dumps(settings["request"])
    if isinstance(settings.get("request"), str) and is_inline(settings["request"]):
        settings["request"] = with_full_paths(settings["request"], folder)
    for key in _PATHS:
        if isinstance(settings.get(key), str) and _is_path(key, settings[key], folder):
            settings[key] = str(folder / settings[key])
    app = settings.get("app")
    if isinstance(app, str) and split(app) is not None:
        settings["app"] = _absolute(app, folder)
    elif isinstance(app, str) and ":" in app and not app.startswith("/"):
        module = app.rpartition(":")[0]
        file = folder / (module if module.endswith(".py") else module.replace(".", "/") + ".py")
        if file.is_file() and not (Path.cwd() / file.name).is_file():
            settings["app"] = f"{file}:{app.rpartition(':')[2]}"
    return {key: value for key, value in settings.items() if value is not None}


def check_known(settings: Iterable[str], what: str) -> None:
    """Raises `InputError`, which begins with `what`, for the first name that is no setting."""
    known = _settings()
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise InputError(f"{what} {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _is_path(name: str, value: str, folder: Path | None = None) -> bool:
    if name not in _PATHS or not isinstance(value, str):
        return False
    if name == "prices" and value in BUNDLED_PRICES:
        return False
    if name == "request":  # a file, the JSON itself, or module:function
        named = value.endswith((".json", ".jsonl"))
        return not is_inline(value) and (named or ((folder or Path.cwd()) / value).is_file())
    return True
