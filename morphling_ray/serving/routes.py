"""What a FastAPI application can be asked for, by its own OpenAPI document: what to say to whoever asks for nothing."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DEPTH = 5  # of an example: a schema may contain itself
_SIMPLE = {"string": "...", "integer": 1, "number": 1.0, "boolean": True, "null": None}
_BODIES = ("application/json", "multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(frozen=True)
class Route:
    """One thing to ask for.

    Attributes:
        method: `GET`, `POST` and so on.
        path: The application's route prefix included, parameters in braces.
        example: An HTTP request as `--request` takes it, with whatever fits the schema in place of real values.
        needs: Whether it takes a body, or parameters without which it is refused.
    """

    method: str
    path: str
    example: Mapping[str, Any]
    needs: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def routes_of(ingress: Any, prefix: str) -> tuple[Route, ...]:
    """Routes of a deployment's class; none where it is no FastAPI application, or that is made in the replica alone.

    Args:
        ingress: What `@serve.ingress` returned.
        prefix: The application's route prefix.
    """
    try:
        app = inspect.getclosurevars(ingress.__init__).nonlocals["frozen_app_or_func"]
        document = app.openapi()
        schemas = document.get("components", {}).get("schemas", {})
        return tuple(
            _route(method.upper(), prefix.rstrip("/") + path, operation, schemas)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if method in ("get", "post", "put", "patch", "delete")
        )
    except Exception:  # noqa: BLE001  it is the user's own, of any ASGI framework, and this is a help, not a need
        return ()


def _route(method: str, path: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> Route:
    required = [p for p in operation.get("parameters", []) if p.get("required")]
    query = [f"{p['name']}={_example(p.get('schema', {}), schemas)}" for p in required if p["in"] == "query"]
    headers = {p["name"]: str(_example(p.get("schema", {}), schemas)) for p in required if p["in"] == "header"}
    example: dict[str, Any] = {"method": method, "path": path + ("?" + "&".join(query) if query else "")}
    example |= {"headers": headers} if headers else {}
    content = operation.get("requestBody", {}).get("content", {})
    kind = next((k for k in _BODIES if k in content), None)
    if kind is not None:
        body = _example(content[kind].get("schema", {}), schemas)
        example |= {"json": body} if kind == _BODIES[0] else _form(body, content[kind].get("schema", {}), schemas)
    elif content:
        example["body_file"] = "FILE"
    return Route(method, path, example, needs=bool(content or required))


def _form(body: Any, schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a form, with those that are files by themselves."""
    properties = _resolved(schema, schemas).get("properties", {})
    files = {name for name, p in properties.items() if {"format", "contentMediaType"} & set(_resolved(p, schemas))}
    fields = body if isinstance(body, dict) else {}
    form = {name: value for name, value in fields.items() if name not in files}
    return ({"form": form} if form else {}) | ({"files": dict.fromkeys(sorted(files), "FILE")} if files else {})


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found: Mapping[str, Any] = schemas.get(name, {}) if name else schema
    return found


def _example(schema: Mapping[str, Any], schemas: Mapping[str, Any], depth: int = 0) -> Any:
    """A value that fits a schema: the author's own example or default, if there is one."""
    schema = _resolved(schema, schemas)
    for key in ("example", "default", "const"):
        if schema.get(key) is not None:
            return schema[key]
    for key in ("examples", "enum"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _example(schema[key][0], schemas, depth)
    if depth < _DEPTH and schema.get("type") == "array":
        return [_example(schema.get("items", {}), schemas, depth + 1)]
    if depth < _DEPTH and schema.get("properties"):
        required = schema.get("required", [])
        return {n: _example(p, schemas, depth + 1) for n, p in schema["properties"].items() if n in required}
    return _SIMPLE.get(str(schema.get("type")), {})
