"""A user's own Serve config file: read as the application to tune, and edited as the result, with its comments kept."""

import difflib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from morphling_ray.errors import InputError

SUFFIXES = (".yaml", ".yml")


def split(text: str) -> tuple[Path, str | None] | None:
    """`FILE.yaml` or `FILE.yaml:APPLICATION`, in its parts; None where `--app` names no such file."""
    if text.endswith(SUFFIXES):
        return Path(text), None
    file, _, name = text.rpartition(":")
    return (Path(file), name) if file.endswith(SUFFIXES) else None


def read_application(file: Path, name: str | None) -> dict[str, Any]:
    """The entry of one application, as plain data.

    Raises:
        InputError: The file cannot be read or is no Serve config, or it is not clear which application is meant.
    """
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    config = _load(file)
    try:
        ServeDeploySchema.model_validate(config)
    except (ValidationError, ValueError) as error:
        raise InputError(f"{file} is no Serve config: {' '.join(str(error).split())[:300]}") from error
    applications: list[dict[str, Any]] = config.get("applications") or []
    names = [str(a.get("name", "default")) for a in applications]
    if name is None and len(applications) == 1:
        return applications[0]
    if name in names:
        return applications[names.index(name)]
    if not applications:
        raise InputError(f"{file} has no applications")
    raise InputError(f"{file} has the applications {', '.join(names)}: write --app {file}:{names[0]}, say")


def _load(file: Path) -> dict[str, Any]:
    try:
        config = YAML(typ="safe", pure=True).load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"Serve config {file}: {reason}") from error
    except YAMLError as error:
        raise InputError(f"Serve config {file} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(config, dict):
        raise InputError(f"Serve config {file}: expected applications")
    return config


def edited(file: Path, name: str | None, wanted: Mapping[str, Any]) -> str:
    """The file's text with one application set to what is wanted; comments, order and everything else stay.

    Args:
        file: The user's own config.
        name: Of the application; None where there is one.
        wanted: Settings of the application that have a new value, nested as in a Serve config; `deployments` by name.
            None removes a setting.
    """
    yaml = YAML()  # round trip
    yaml.preserve_quotes = True
    yaml.width = 4096
    text = file.read_text()
    indented = re.search(r"^applications:[^\n]*\n(?:\s*(?:#[^\n]*)?\n)*( *)- ", text, re.M)
    yaml.indent(mapping=2, sequence=4, offset=2) if indented and indented[1] else yaml.indent(2, 2, 0)
    config = yaml.load(text)
    applications = config["applications"]
    (application,) = [a for a in applications if name is None or a.get("name", "default") == name]
    for key, value in wanted.items():
        if key != "deployments":
            _merge(application, {key: value})
    for deployment, settings in wanted.get("deployments", {}).items():
        present = application.setdefault("deployments", [])
        entry = next((d for d in present if d["name"] == deployment), None)
        if entry is None:
            entry = {"name": deployment}
            present.append(entry)
        _merge(entry, settings)
    out = io.StringIO()
    yaml.dump(config, out)
    return out.getvalue()


def _merge(into: Any, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif into.get(key) != value or isinstance(into.get(key), bool) != isinstance(value, bool):
            into[key] = dict(value) if isinstance(value, Mapping) else value


def difference(file: Path, text: str) -> str:
    """What changed, as a unified diff."""
    lines = difflib.unified_diff(
        file.read_text().splitlines(), text.splitlines(), str(file.name), "serve_config.yaml", lineterm=""
    )
    return "\n".join(lines)
