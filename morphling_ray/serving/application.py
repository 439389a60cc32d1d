"""What is known about a user's Serve application before it is deployed: its deployments, and how it is asked."""

import ast
import importlib
import inspect
import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from morphling_ray.errors import InputError
from morphling_ray.serving.config_file import read_application
from morphling_ray.serving.config_file import split as config_file_of
from morphling_ray.serving.routes import Route, routes_of

SERVES_OWN = ("check_health", "reconfigure", "record_autoscaling_stats")  # methods of a deployment that Serve calls


@dataclass(frozen=True, kw_only=True)
class DeploymentFacts:
    """One deployment as its code, or the user's Serve config, declares it. `None` where a setting is left to Serve."""

    name: str
    user_config: dict[str, Any] | None
    num_replicas: int | None
    max_ongoing_requests: int | None
    autoscaling: dict[str, Any] | None = None
    """Its autoscaling settings; None where the number of replicas is fixed."""
    ray_actor_options: dict[str, Any] = field(default_factory=dict)
    bundles: tuple[dict[str, float], ...] = ()
    """Of each replica's placement group, the replica itself in the first one; none where it has no such group."""
    config: dict[str, Any] = field(default_factory=dict)
    """Its entry in the user's own Serve config; empty where there is none."""

    @property
    def beside(self) -> dict[str, float]:
        """What each replica's placement group holds beside the replica: for workers that it starts, most often."""
        options = self.ray_actor_options
        own = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus"), "memory": options.get("memory")}
        own |= options.get("resources") or {}
        held = Counter[str]()
        for bundle in self.bundles:
            held.update(bundle)
        return {name: more for name, amount in held.items() if (more := amount - float(own.get(name) or 0)) > 0}

    @property
    def gpu_type(self) -> str | None:
        """The type of GPU that the replica asks for, or its placement group."""
        asked = (name.partition(":")[2] for name in self.beside if name.startswith("accelerator_type:"))
        return self.ray_actor_options.get("accelerator_type") or next(asked, None)


@dataclass(frozen=True, kw_only=True)
class ApplicationFacts:
    """A Serve application, bound or made by a builder function.

    Attributes:
        import_path: `module:attribute`, as a Serve config names it.
        folder: Put on the path of replicas, so that the module is found; None for an installed package.
        deployments: By name; the ingress is one of them.
        ingress: Name of the deployment that takes requests.
        wants_http: The ingress is a FastAPI or ASGI application, or its `__call__` takes a Starlette request, by
            its type or by what it does with it.
        methods: Of an ingress that has no `__call__`: what else it may be asked for. Else empty.
        routes: Of an ingress that is a FastAPI application: what it may be asked for. Else empty.
        default_request: The module's own `request` function, called for a payload; None if it has none.
        py_executable: The interpreter of the replicas, where Ray does not find the right one by itself.
        args: What the builder function is given; None for an application that is bound already.
        config: The application's entry in the user's own Serve config, without its deployments; empty if there is none.
        config_file: That config, and the application's name in it if it was given.
        mps: When CUDA MPS is used: `auto`, `on` or `off` (gpu_limits.py).
        secrets: By knob, what its values stand for (masking.py).
    """

    import_path: str
    folder: str | None
    deployments: dict[str, DeploymentFacts]
    ingress: str
    wants_http: bool
    default_request: str | None
    methods: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    py_executable: str | None = None
    args: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    config_file: tuple[Path, str | None] | None = None
    mps: str = "auto"
    secrets: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    @property
    def route_prefix(self) -> str:
        """Where it takes HTTP."""
        return str(self.config.get("route_prefix") or "/")


def resolve_app(text: str, flag: str = "--app") -> tuple[str, str | None]:
    """`module:attribute`, with the module as a dotted name or as a path to a file, and the folder it is in.

    Args:
        text: As a user writes it.
        flag: Where; for the message.

    Raises:
        InputError: It does not have that form.
    """
    module, _, attribute = text.rpartition(":")
    if not module or not attribute.isidentifier():
        raise InputError(f"{flag} {text!r}: write module:attribute, for example my_app:app")
    if module.endswith(".py") or "/" in module:
        file = Path(module if module.endswith(".py") else module + ".py").resolve()
        if not file.is_file():
            raise InputError(f"{flag} {text!r}: there is no file {module}")
        return f"{file.stem}:{attribute}", str(file.parent)
    here = Path.cwd()
    top = module.split(".")[0]
    # This package is installed wherever a replica runs, also when the command was given in its own checkout.
    local = top != "morphling_ray" and ((here / top).is_dir() or (here / f"{top}.py").is_file())
    return f"{module}:{attribute}", str(here) if local else None


def inspect_app(text: str) -> ApplicationFacts:
    """Imports an application and reads its deployments.

    Args:
        text: `module:attribute`, or a Serve config file that names it (`FILE.yaml`, `FILE.yaml:APPLICATION`).

    Raises:
        InputError: It does not import (the message has the reason), or is not a Serve application.
    """
    config_file, entry = config_file_of(text), dict[str, Any]()
    if config_file is None:
        import_path, folder = resolve_app(text)
    else:
        entry = read_application(*config_file)
        import_path, folder = _named_in(config_file[0], str(entry["import_path"]))
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    module_name, _, attribute = import_path.partition(":")
    try:
        # What it prints is not this program's output, whose last line is for other programs.
        with _nothing_served(module_name), redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except BaseException as error:  # a user's module may raise anything, SystemExit included
        if isinstance(error, (KeyboardInterrupt, InputError)):
            raise
        raise InputError(f"--app {text!r} does not import: {type(error).__name__}: {_one_line(error)}") from error
    if not hasattr(module, attribute):
        raise InputError(f"--app {text!r}: module {module_name} has no {attribute!r}")
    target = getattr(module, attribute)
    args = dict(entry.get("args") or {}) if inspect.isfunction(target) else None
    built = _build(target, text, args or {})
    entries = {str(d["name"]): d for d in entry.get("deployments") or []}
    if unknown := sorted(set(entries) - {d.name for d in built.deployments}):
        raise InputError(f"--app {text!r}: the application has no deployment {', '.join(unknown)}")
    deployments = {d.name: _overridden(_facts(d), entries.get(d.name, {})) for d in built.deployments}
    ingress = next(d for d in built.deployments if d.name == built.ingress_deployment_name)
    request = getattr(module, "request", None)
    prefix = str(entry.get("route_prefix") or "/")
    return ApplicationFacts(
        import_path=import_path,
        folder=folder,
        deployments=deployments,
        ingress=ingress.name,
        wants_http=_wants_http(ingress),
        methods=_methods(ingress.func_or_class),
        routes=routes_of(ingress.func_or_class, prefix),
        default_request=f"{module_name}:request" if callable(request) and _takes_nothing(request) else None,
        args=args,
        config={key: value for key, value in entry.items() if key != "deployments"},
        config_file=config_file,
    )


@contextmanager
def _nothing_served(module: str) -> Iterator[None]:
    """Keeps a module that is imported from serving anything: replicas import it too, and each would serve it again."""
    from ray import serve

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise InputError(
            f'importing {module} calls serve.run: put it, and what follows it, under `if __name__ == "__main__":`'
        )

    present = {name: getattr(serve, name) for name in ("run", "run_many")}
    try:
        for name in present:
            setattr(serve, name, refuse)
        yield
    finally:
        for name, function in present.items():
            setattr(serve, name, function)


def usual_request(facts: ApplicationFacts, method: str) -> dict[str, Any]:
    """The HTTP request that is meant where none is named: for the root, or for the only thing there is to ask for.

    Raises:
        InputError: There is nothing at the root, and more than one other thing, or one that needs to be told more.
    """
    prefix, routes = facts.route_prefix, facts.routes
    there = [r for r in routes if r.method == method and not (method == "GET" and r.needs)]
    root = [r for r in there if r.path.rstrip("/") == prefix.rstrip("/")]
    if not routes or root:
        return {"method": method, "path": root[0].path if root else prefix}
    if len(there) == 1 and (method == "POST" or len(routes) == 1) and "{" not in there[0].path:
        return {"method": method, "path": there[0].path}
    most = max(routes, key=lambda r: r.needs)
    raise InputError(
        f"{facts.ingress} takes no {method} at {prefix}, but {', '.join(map(str, routes))}: "
        f"--request says what to send, for example '{json.dumps(most.example)}'"
    )


def _named_in(file: Path, import_path: str) -> tuple[str, str | None]:
    """A config's import path as `module:attribute`, and the folder its module is in: here, or beside the config."""
    module, _, attribute = import_path.rpartition(":" if ":" in import_path else ".")
    import_path, folder = resolve_app(f"{module}:{attribute}")
    top, beside = module.split(".")[0], file.resolve().parent
    if folder is None and ((beside / top).is_dir() or (beside / f"{top}.py").is_file()):
        return import_path, str(beside)
    return import_path, folder


def _overridden(facts: DeploymentFacts, entry: dict[str, Any]) -> DeploymentFacts:
    """A deployment with what a Serve config says of it, which beats the code."""
    replicas = entry.get("num_replicas", facts.num_replicas)
    fixed = isinstance(entry.get("num_replicas"), int)
    autoscaling = None if fixed else facts.autoscaling
    if entry.get("autoscaling_config") is not None or replicas == "auto":
        autoscaling = dict(entry.get("autoscaling_config") or {})
    user_config = entry.get("user_config", facts.user_config)
    return replace(
        facts,
        user_config=dict(user_config) if isinstance(user_config, dict) else None,
        num_replicas=replicas if isinstance(replicas, int) else None,
        max_ongoing_requests=entry.get("max_ongoing_requests", facts.max_ongoing_requests),
        autoscaling=autoscaling,
        ray_actor_options=dict(entry.get("ray_actor_options") or facts.ray_actor_options),
        bundles=tuple(entry.get("placement_group_bundles") or facts.bundles),
        config=dict(entry),
    )


def _build(target: Any, text: str, args: dict[str, Any]) -> Any:
    from ray.serve import Application, Deployment
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve._private.build_app import build_app

    if isinstance(target, Deployment):
        raise InputError(f"--app {text!r} is a deployment, not an application: bind it, `app = {target.name}.bind()`")
    if not isinstance(target, Application) and not inspect.isfunction(target):
        raise InputError(
            f"--app {text!r} is not a Serve application but {type(target).__name__}; "
            "name the result of `.bind()`, or a function that returns one"
        )
    try:
        with redirect_stdout(sys.stderr):
            application = call_user_app_builder_with_args_if_necessary(target, args)
        return build_app(application, name="morphling_ray")
    except Exception as error:  # a user's builder may raise anything
        raise InputError(f"--app {text!r} does not build: {type(error).__name__}: {_one_line(error)}") from error


def _facts(deployment: Any) -> DeploymentFacts:
    config = deployment._deployment_config
    explicit = config.user_configured_option_names
    return DeploymentFacts(
        name=deployment.name,
        user_config=dict(deployment.user_config) if isinstance(deployment.user_config, dict) else None,
        num_replicas=config.num_replicas if "num_replicas" in explicit else None,
        max_ongoing_requests=config.max_ongoing_requests if "max_ongoing_requests" in explicit else None,
        autoscaling=_settings(config.autoscaling_config),
        ray_actor_options=dict(deployment.ray_actor_options or {}),
        bundles=tuple(deployment._replica_config.placement_group_bundles or ()),
    )


def _settings(autoscaling: Any) -> dict[str, Any] | None:
    """The settings of an autoscaling configuration that Serve's config schema takes, as plain data."""
    if autoscaling is None:
        return None
    data: dict[str, Any] = autoscaling.model_dump(mode="json", exclude_unset=True)
    return {key: value for key, value in data.items() if not key.startswith("_") and value is not None}


def _wants_http(ingress: Any) -> bool:
    from ray.serve._private.http_util import ASGIAppReplicaWrapper

    target = ingress.func_or_class
    if inspect.isclass(target) and issubclass(target, ASGIAppReplicaWrapper):
        return True
    call = getattr(target, "__call__", None) if inspect.isclass(target) else target  # noqa: B004
    try:
        parameters = [p for p in inspect.signature(call).parameters.values() if p.name != "self"]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    annotation = parameters[0].annotation if parameters else None
    if annotation is inspect.Parameter.empty:
        return _reads_request(call, parameters[0].name)
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.split(".")[-1] == "Request"


def _reads_request(call: Any, parameter: str) -> bool:
    """Whether a function awaits the body of a parameter without a type, as only that of a web request is."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(call)))
    except (OSError, SyntaxError, TypeError):
        return False
    bodies = {f"await {parameter}.{name}()" for name in ("json", "body", "form")}
    return any(isinstance(node, ast.Await) and ast.unparse(node) in bodies for node in ast.walk(tree)) or any(
        isinstance(node, ast.Attribute) and ast.unparse(node) == f"{parameter}.query_params" for node in ast.walk(tree)
    )


def _methods(target: Any) -> tuple[str, ...]:
    """Public methods of a class whose instances cannot be called, less those that Serve itself calls."""
    if not inspect.isclass(target) or "__call__" in dir(target):  # `hasattr` would find that of the class's own type
        return ()
    public = (name for name in dir(target) if not name.startswith("_") and name not in SERVES_OWN)
    return tuple(name for name in public if callable(getattr(target, name, None)))


def _takes_nothing(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def python_path(folder: str | None) -> dict[str, str]:
    """Environment variables under which a replica finds the application's module."""
    if folder is None:
        return {}
    present = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != folder]
    return {"PYTHONPATH": os.pathsep.join([folder, *present])}
