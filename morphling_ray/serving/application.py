"""What is known about a user's Serve application before it is deployed: its deployments, and how it is asked."""

import importlib
import inspect
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphling_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DeploymentFacts:
    """One deployment as its code declares it. `None` where the code leaves a setting to Serve."""

    name: str
    user_config: dict[str, Any] | None
    num_replicas: int | None
    max_ongoing_requests: int | None
    autoscaled: bool
    ray_actor_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ApplicationFacts:
    """A Serve application, bound or made by a builder function.

    Attributes:
        import_path: `module:attribute`, as a Serve config names it.
        folder: Put on the path of replicas, so that the module is found; None for an installed package.
        deployments: By name; the ingress is one of them.
        ingress: Name of the deployment that takes requests.
        wants_http: The ingress is a FastAPI or ASGI application, or its `__call__` takes a Starlette request.
        default_request: The module's own `request` function, called for a payload; None if it has none.
        py_executable: The interpreter of the replicas, where Ray does not find the right one by itself.
    """

    import_path: str
    folder: str | None
    deployments: dict[str, DeploymentFacts]
    ingress: str
    wants_http: bool
    default_request: str | None
    py_executable: str | None = None


def resolve_app(text: str) -> tuple[str, str | None]:
    """`module:attribute`, with the module as a dotted name or as a path to a file, and the folder it is in.

    Raises:
        InputError: It does not have that form.
    """
    module, _, attribute = text.rpartition(":")
    if not module or not attribute.isidentifier():
        raise InputError(f"--app {text!r}: write module:attribute, for example my_app:app")
    if module.endswith(".py") or "/" in module:
        file = Path(module if module.endswith(".py") else module + ".py").resolve()
        if not file.is_file():
            raise InputError(f"--app {text!r}: there is no file {module}")
        return f"{file.stem}:{attribute}", str(file.parent)
    here = Path.cwd()
    top = module.split(".")[0]
    # This package is installed wherever a replica runs, also when the command was given in its own checkout.
    local = top != "morphling_ray" and ((here / top).is_dir() or (here / f"{top}.py").is_file())
    return f"{module}:{attribute}", str(here) if local else None


def inspect_app(text: str) -> ApplicationFacts:
    """Imports an application and reads its deployments.

    Raises:
        InputError: It does not import (the message has the reason), or is not a Serve application.
    """
    import_path, folder = resolve_app(text)
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    module_name, _, attribute = import_path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # a user's module may raise anything, SystemExit included
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InputError(f"--app {text!r} does not import: {type(error).__name__}: {_one_line(error)}") from error
    if not hasattr(module, attribute):
        raise InputError(f"--app {text!r}: module {module_name} has no {attribute!r}")
    built = _build(getattr(module, attribute), text)
    deployments = {d.name: _facts(d) for d in built.deployments}
    ingress = built.ingress_deployment_name
    request = getattr(module, "request", None)
    return ApplicationFacts(
        import_path=import_path,
        folder=folder,
        deployments=deployments,
        ingress=ingress,
        wants_http=_wants_http(next(d for d in built.deployments if d.name == ingress)),
        default_request=f"{module_name}:request" if callable(request) and _takes_nothing(request) else None,
    )


def _build(target: Any, text: str) -> Any:
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
        application = call_user_app_builder_with_args_if_necessary(target, {})
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
        autoscaled=config.autoscaling_config is not None,
        ray_actor_options=dict(deployment.ray_actor_options or {}),
    )


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
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.split(".")[-1] == "Request"


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
