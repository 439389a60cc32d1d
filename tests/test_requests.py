"""What requests send: files, functions, methods of a Serve handle."""

import itertools
import json
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from ray.serve.generated import serve_pb2

from morphling_ray.errors import InputError
from morphling_ray.experiment import Experiment, Parser, add_flags, resolve
from morphling_ray.load.client import HandleClient
from morphling_ray.load.requests import RequestSource, is_call, is_grpc, is_http, read_request, with_files_of


def test_request_sources(tmp_path: Path) -> None:
    """Fails if a function is called once only, or a generator is not begun again when it has ended."""
    (tmp_path / "my_requests.py").write_text(
        "import itertools\n_n = itertools.count()\n"
        "def each():\n    return next(_n)\n"
        "def items():\n    yield 'a'\n    yield 'b'\n"
    )
    folder = str(tmp_path)
    assert list(itertools.islice(RequestSource(values=([1],)).payloads(), 2)) == [[1], [1]]
    assert list(itertools.islice(RequestSource(values=(1, 2)).payloads(), 3)) == [1, 2, 1]
    assert list(itertools.islice(RequestSource(function="my_requests:each", folder=folder).payloads(), 3)) == [0, 1, 2]
    items = RequestSource(function="my_requests:items", folder=folder).payloads()
    assert list(itertools.islice(items, 3)) == ["a", "b", "a"]


def test_an_endless_generator_is_not_kept(tmp_path: Path) -> None:
    """Fails if all that a generator ever yielded stays in memory: large payloads would fill it during a search."""
    (tmp_path / "large_requests.py").write_text(
        "import weakref\nalive = weakref.WeakSet()\n"
        "class Image:\n    pass\n"
        "def images():\n"
        "    while True:\n"
        "        image = Image()\n        alive.add(image)\n        yield image\n"
        "def nothing():\n    yield from ()\n"
    )
    source = RequestSource(function="large_requests:images", folder=str(tmp_path))
    sent = source.payloads()
    for _ in range(20):
        next(sent)
    import large_requests  # type: ignore[import-not-found]

    assert len(large_requests.alive) <= 2
    assert list(RequestSource(function="large_requests:nothing", folder=str(tmp_path)).payloads()) == []


def test_what_a_request_file_holds(tmp_path: Path) -> None:
    """Fails if a list of HTTP requests or calls is sent as the body of one, or any other list is taken apart."""
    request, call = {"method": "POST", "path": "/score", "json": {"x": 1}}, {"call": "search", "args": [1]}

    def read(name: str, text: str) -> list[Any]:
        (tmp_path / name).write_text(text)
        return read_request(tmp_path / name)

    assert read("one.json", json.dumps(request)) == [request]
    assert read("list.json", json.dumps([request, request])) == [request, request]
    assert read("calls.json", json.dumps([call, call])) == [call, call]
    assert read("numbers.json", "[1, 2]") == [[1, 2]]
    assert read("mixed.json", json.dumps([request, 1])) == [[request, 1]]
    assert read("none.json", "[]") == [[]]
    assert read("lines.jsonl", "[1, 2]\n\n3\n") == [[1, 2], 3]
    assert read("lists.jsonl", json.dumps([request]) + "\n") == [[request]]


def _parts(request: dict[str, Any]) -> dict[str, Message]:
    """The parts of a multipart form, by field."""
    head = f"Content-Type: {request['headers']['Content-Type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + request["body"]).get_payload()
    assert isinstance(parts, list)
    messages = [part for part in parts if isinstance(part, Message)]
    return {str(part.get_param("name", header="content-disposition")): part for part in messages}


def resolved(*flags: str) -> Experiment:
    """The experiment that a command line means."""
    parser = Parser()
    add_flags(parser)
    return resolve(parser.parse_args(flags))


def test_a_request_that_is_json_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a newcomer needs a file for three words, or a file that the JSON names is looked for elsewhere."""
    (tmp_path / "cat.jpg").write_bytes(b"a cat")
    (tmp_path / "experiment.yaml").write_text("request: {method: POST, path: /see, body_file: cat.jpg}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    given = '{"method": "POST", "path": "/see", "body_file": "cat.jpg"}'
    monkeypatch.chdir(tmp_path)
    both = [resolved("--request", given).request, resolved("--experiment", "experiment.yaml").request]
    monkeypatch.chdir(elsewhere)
    for request in both:
        (payload,) = read_request(str(request))
        assert (payload["path"], payload["body"]) == ("/see", b"a cat")
    assert read_request('[{"call": "a"}, {"call": "b"}]') == [{"call": "a"}, {"call": "b"}]
    with pytest.raises(InputError, match="keep a request with the header Authorization in a file"):
        read_request('{"method": "GET", "path": "/", "headers": {"Authorization": "Bearer abc"}}')
    with pytest.raises(InputError, match="is not JSON: Expecting property name"):
        resolved("--request", "{'a'")


def test_files_that_a_request_sends(tmp_path: Path) -> None:
    """Fails if a file's bytes, name or type get lost on the way into the body, or the user's own type is overruled."""
    picture = bytes(range(256))
    (tmp_path / "cat.jpg").write_bytes(picture)

    def read(**body: Any) -> dict[str, Any]:
        (tmp_path / "request.json").write_text(json.dumps({"method": "POST", "path": "/see", **body}))
        (payload,) = read_request(tmp_path / "request.json")
        assert is_http(payload)
        return dict(payload)

    plain = read(body_file="cat.jpg", headers={"X-Key": "k"})
    assert plain["body"] == picture
    assert plain["headers"] == {"X-Key": "k", "Content-Type": "image/jpeg"}
    named = read(body_file="cat.jpg", headers={"content-type": "image/x-raw"})
    assert named["headers"] == {"content-type": "image/x-raw"}
    form = _parts(read(files={"image": "cat.jpg"}, form={"top_k": 3, "note": "a cat"}))
    assert form["image"].get_payload(decode=True) == picture
    assert (form["image"].get_filename(), form["image"].get_content_type()) == ("cat.jpg", "image/jpeg")
    assert [form[name].get_payload() for name in ("top_k", "note")] == ["3", "a cat"]
    assert read(json={"files": 1})["json"] == {"files": 1}
    for wrong, said in (
        ({"body_file": "dog.jpg"}, "dog.jpg: No such file"),
        ({"body_file": "cat.jpg", "json": {}}, "one body, not json and body_file"),
        ({"files": ["cat.jpg"]}, "form and files say what each field holds"),
    ):
        with pytest.raises(InputError, match=said):
            read(**wrong)


def test_files_are_found_from_anywhere(tmp_path: Path) -> None:
    """Fails if a request that was given in Python looks for its files beside wherever it is written down."""
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    request = {"method": "POST", "path": "/", "files": {"image": "cat.jpg"}, "form": {"n": 1}}
    full = str(tmp_path / "cat.jpg")
    assert with_files_of(request, tmp_path) == {**request, "files": {"image": full}}
    raw = {"method": "POST", "path": "/", "body_file": "cat.jpg"}
    assert with_files_of([raw, raw], tmp_path) == [{**raw, "body_file": full}] * 2
    for other in ({"files": {"image": "cat.jpg"}}, {"x": ["files"]}, "files", None, {"method": "GET", "path": "/"}):
        assert with_files_of(other, tmp_path) == other


def test_what_a_grpc_request_is() -> None:
    """Fails if an HTTP request, or a dict that holds no message, is taken for a gRPC call."""
    message = serve_pb2.UserDefinedMessage(name="somebody")
    assert is_grpc({"method": "/package.Service/Method", "message": message})
    assert not is_grpc({"method": "GET", "path": "/"})
    assert not is_grpc({"method": "/package.Service/Method", "message": {"name": "somebody"}})
    assert not is_http({"method": "/package.Service/Method", "message": message})


def test_what_an_http_request_is() -> None:
    """Fails if any dict counts as HTTP."""
    assert is_http({"method": "POST", "path": "/x", "json": {}})
    assert not is_http({"method": "POST"})
    assert not is_http({"method": "POST", "path": "/", "pixels": []})
    assert not is_http(["method", "path"])


def test_what_a_call_is() -> None:
    """Fails if a dict that is an argument itself is taken for a call."""
    assert is_call({"call": "search", "args": [1], "kwargs": {"k": 2}})
    assert is_call({"call": "search", "multiplexed_model_id": "small"})
    assert not is_call({"args": [1]})
    assert not is_call({"call": 7})
    assert not is_call({"call": "search", "who": "me"})


@serve.deployment
class Index:
    """Several methods, as an application has that only others call."""

    def search(self, query: str, k: int, *, metric: str = "dot") -> list[Any]:
        return [query, k, metric]

    def words(self, query: str) -> Any:
        yield from query.split()

    def __call__(self, query: str = "nothing") -> str:
        return f"called with {query}"


async def test_methods_of_a_serve_handle() -> None:
    """Fails if a named method is not what is called, or its arguments do not arrive as they were given."""
    client = HandleClient(serve.run(Index.bind(), _local_testing_mode=True))  # type: ignore[attr-defined]
    call = {"call": "search", "args": ["cats", 3], "kwargs": {"metric": "cosine"}}
    assert await client.send(call) == ["cats", 3, "cosine"]
    assert await client.send({**call, "kwargs": {}}) == ["cats", 3, "dot"]
    assert await client.send(None) == "called with nothing"
    assert await client.send("dogs") == "called with dogs"
    assert await client.send({"query": "a dict"}) == "called with {'query': 'a dict'}"
    assert [n async for n in client.stream({"call": "words", "args": ["a b c"]})] == [1, 1, 1]
