"""What requests send: the JSON values of a file in turn, or what a user's function makes.

A payload is one of four:

HTTP    `{"method": "POST", "path": "/predict", "json": ... | "body": ..., "headers": {...}}`
gRPC    `{"method": "/package.Service/Method", "message": a protobuf message}`
call    `{"call": "predict", "args": [...], "kwargs": {...}}`: a method of the ingress, through the Serve handle
other   the one argument of the ingress itself, through the Serve handle
"""

import itertools
import json
import mimetypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from morphling_ray.errors import InputError

HTTP_KEYS = {"method", "path", "json", "body", "headers"}
FILE_KEYS = {"body_file", "form", "files"}  # of an HTTP request in a file: what its body is made of
GRPC_KEYS = {"method", "message"}
_SECRET_HEADER = re.compile("auth|cookie|key|token|secret", re.IGNORECASE)
CALL_KEYS = {"call", "args", "kwargs", "multiplexed_model_id"}


def is_http(payload: Any) -> bool:
    """Whether a payload describes an HTTP request: `{"method", "path", "json" | "body", "headers"}`."""
    return isinstance(payload, dict) and "method" in payload and "path" in payload and set(payload) <= HTTP_KEYS


def is_grpc(payload: Any) -> bool:
    """Whether a payload describes a gRPC call: `{"method": "/package.Service/Method", "message": a message}`."""
    return isinstance(payload, dict) and set(payload) == GRPC_KEYS and hasattr(payload["message"], "SerializeToString")


def is_call(payload: Any) -> bool:
    """Whether a payload names a method of the ingress: `{"call", "args", "kwargs", "multiplexed_model_id"}`."""
    return isinstance(payload, dict) and isinstance(payload.get("call"), str) and set(payload) <= CALL_KEYS


def read_request(source: Path | str) -> list[Any]:
    """The payloads in a request file: the one JSON value of a `.json` file, or those of all lines of a `.jsonl` file.

    Or those of a text that is JSON itself.

    A list of HTTP requests, or of calls, is as many payloads: nobody sends one as the body of another. An HTTP request
    may be made of files beside it: `body_file` is sent as it is, `form` and `files` (a path for each field) as a
    multipart form.

    Raises:
        InputError: It cannot be read, holds nothing, or is not JSON.
    """
    if isinstance(source, str) and is_inline(source):
        payloads = _payloads(_loaded(source), Path("--request"))
        for name in (name for p in payloads if is_http(p) for name in p.get("headers") or {}):
            if _SECRET_HEADER.search(name):
                raise InputError(f"keep a request with the header {name} in a file: reports show what --request says")
        return payloads
    path = Path(source)
    try:
        text = path.read_text()
        texts = [line for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else [text]
        payloads = [json.loads(each) for each in texts]
    except OSError as error:
        raise InputError(f"request file {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"request file {path} is not JSON: {error}") from error
    if not payloads:
        raise InputError(f"request file {path} is empty")
    return [_whole(p, path) for p in payloads] if path.suffix == ".jsonl" else _payloads(payloads[0], path)


def is_inline(text: str) -> bool:
    """Whether a text is a JSON object or list itself, and names neither a file nor a function."""
    return text.lstrip()[:1] in ("{", "[")


def with_full_paths(text: str, folder: Path) -> str:
    """A text that is JSON itself, with the files that it names by their full paths.

    Raises:
        InputError: It is not JSON.
    """
    return json.dumps(with_files_of(_loaded(text), folder))


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"--request {text!r} is not JSON: {error}") from error


def _payloads(value: Any, of: Path) -> list[Any]:
    if isinstance(value, list) and value:
        several = [_whole(p, of) for p in value]
        if all(is_http(p) or is_call(p) for p in several):
            return several
    return [_whole(value, of)]


def with_files_of(payload: Any, folder: Path) -> Any:
    """A payload, or a list of them, in which HTTP requests name their files by the full path."""
    if isinstance(payload, list):
        return [with_files_of(each, folder) for each in payload]
    if not _has_files(payload):
        return payload
    full = dict(payload)
    if "body_file" in payload:
        full["body_file"] = str(folder / str(payload["body_file"]))
    if isinstance(files := payload.get("files"), dict):
        full["files"] = {name: str(folder / str(path)) for name, path in files.items()}
    return full


def _has_files(payload: Any) -> bool:
    return isinstance(payload, dict) and bool(FILE_KEYS & set(payload)) and is_http(_without_files(payload))


def _without_files(payload: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key not in FILE_KEYS}


def _whole(payload: Any, of: Path) -> Any:
    """An HTTP request whose body lies in files beside it, with the body and its type; anything else as it is."""
    if not _has_files(payload):
        return payload
    rest = _without_files(payload)
    form, files = payload.get("form", {}), payload.get("files", {})
    ways = [key for key in ("json", "body", "body_file") if key in payload] + ["form and files"] * bool(form or files)
    if len(ways) > 1:
        raise InputError(f"request file {of}: a request has one body, not {' and '.join(ways)}")
    if not isinstance(form, dict) or not isinstance(files, dict):
        raise InputError(f'request file {of}: form and files say what each field holds: {{"image": "cat.jpg"}}')
    if "body_file" in payload:
        _, body, kind = _file(payload["body_file"], of)
    else:
        from urllib3 import encode_multipart_formdata

        fields = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in form.items()]
        body, kind = encode_multipart_formdata([*fields, *((name, _file(value, of)) for name, value in files.items())])
    given = rest.get("headers") or {}
    typed = any(str(name).lower() == "content-type" for name in given)
    return {**rest, "body": body, "headers": given if typed else {**given, "Content-Type": kind}}


def _file(name: Any, of: Path) -> tuple[str, bytes, str]:
    """Name, content and type of a file beside the request file."""
    path = of.parent / str(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"request file {of}: {path}: {error.strerror}") from error
    return path.name, content, mimetypes.guess_type(path.name)[0] or "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class RequestSource:
    """What requests send: JSON values in turn, or what a function returns (each call, or item by item).

    Attributes:
        values: The JSON values; unused where `function` is set.
        function: `module:function`, importable with `folder` on the path.
        folder: Put on the path first.
    """

    values: Sequence[Any] = (None,)
    function: str | None = None
    folder: str | None = None

    def payloads(self) -> Iterator[Any]:
        """Endless iterator of payloads."""
        if self.function is None:
            return itertools.cycle(self.values)
        if self.folder and self.folder not in sys.path:
            sys.path.insert(0, self.folder)
        module, _, name = self.function.partition(":")
        function = getattr(import_module(module), name)
        first = function()
        if isinstance(first, Iterator):
            return _again_and_again(first, function)
        return itertools.chain([first], iter(function, object()))


def _again_and_again(items: Iterator[Any], function: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """What a generator yields, then what it yields when it is called again: to keep all of it could fill the memory."""
    while True:
        empty = True
        for item in items:
            empty = False
            yield item
        if empty:
            return
        items = function()
