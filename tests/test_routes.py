"""What is said to whoever does not say what a FastAPI application is to be asked for."""

import json
from pathlib import Path

import pytest

from morphling_ray.errors import InputError
from morphling_ray.experiment import Experiment
from morphling_ray.load.requests import read_request
from morphling_ray.serving.application import inspect_app
from morphling_ray.target import ServeTarget

HEAD = """
from typing import Annotated, Literal, Optional
from fastapi import FastAPI, File, Form, Header, UploadFile
from pydantic import BaseModel, Field
from ray import serve

api = FastAPI()

class Inner(BaseModel):
    size: int
    children: list["Inner"] = []

class Item(BaseModel):
    text: str = Field(examples=["a cat"])
    kind: Literal["short", "long"]
    inner: Inner
    scores: list[float]
    top_k: int = 3
    note: Optional[str] = None

@serve.deployment
@serve.ingress(api)
class Api:
"""
CLASSIFY = '    @api.post("/v1/classify")\n    async def classify(self, item: Item): ...\n'
UPLOAD = (
    '    @api.post("/v1/upload")\n'
    "    async def upload(self, image: UploadFile, title: Annotated[str, Form()], user: Annotated[str, Header()],\n"
    "                     page: int): ...\n"
)
HEALTH = '    @api.get("/health")\n    async def health(self): ...\n'
ROOT = '    @api.get("/")\n    async def root(self): ...\n'


def application(folder: Path, name: str, *routes: str) -> str:
    """A FastAPI application with these routes, in a module of its own."""
    (folder / f"{name}.py").write_text(HEAD + "".join(routes) + "app = Api.bind()\n")
    return f"{folder / name}.py:app"


def test_examples_are_what_the_routes_take(tmp_path: Path) -> None:
    """Fails if a schema that is named, nested or recursive, an author's example, a file or a parameter is missed."""
    app = application(tmp_path, "routes_examples", CLASSIFY, UPLOAD, HEALTH)
    classify, upload, health = inspect_app(app).routes
    body = {"text": "a cat", "kind": "short", "inner": {"size": 1}, "scores": [1.0]}
    assert classify.example == {"method": "POST", "path": "/v1/classify", "json": body}
    assert upload.example == {
        "method": "POST",
        "path": "/v1/upload?page=1",
        "headers": {"user": "..."},
        "form": {"title": "..."},
        "files": {"image": "FILE"},
    }
    assert (str(health), health.needs) == ("GET /health", False)
    (tmp_path / "FILE").write_bytes(b"an image")
    (tmp_path / "request.json").write_text(json.dumps(upload.example))
    assert b"an image" in read_request(tmp_path / "request.json")[0]["body"]


def test_who_asks_for_nothing_is_told_what_there_is(tmp_path: Path) -> None:
    """Fails if every trial has to end with 404 before a newcomer knows that `--request` is missing."""
    app = application(tmp_path, "routes_nothing", CLASSIFY, HEALTH)
    with pytest.raises(InputError, match=r"takes no GET at /, but POST /v1/classify, GET /health: --request") as told:
        ServeTarget(Experiment(app=app))
    example = str(told.value).rpartition("for example ")[2].strip("'")
    assert ServeTarget(Experiment(app=app, request=example)).source.values == (json.loads(example),)
    rooted = application(tmp_path, "routes_rooted", CLASSIFY, ROOT)
    assert ServeTarget(Experiment(app=rooted)).source.values == ({"method": "GET", "path": "/"},)


def test_a_body_goes_where_bodies_are_taken(tmp_path: Path) -> None:
    """Fails if the JSON of a request is posted to the root of an application that has nothing there."""
    (tmp_path / "body.json").write_text('{"text": "cats"}')
    app = application(tmp_path, "routes_one", CLASSIFY, HEALTH)
    target = ServeTarget(Experiment(app=app, request=str(tmp_path / "body.json")))
    assert target.source.values == ({"method": "POST", "path": "/v1/classify", "json": {"text": "cats"}},)
    two = application(tmp_path, "routes_two", CLASSIFY, UPLOAD)
    with pytest.raises(InputError, match="takes no POST at /, but POST /v1/classify, POST /v1/upload"):
        ServeTarget(Experiment(app=two, request=str(tmp_path / "body.json")))


def test_other_applications_have_no_routes(tmp_path: Path) -> None:
    """Fails if what is no FastAPI application, or made in the replica alone, cannot be inspected."""
    (tmp_path / "routes_none.py").write_text(
        "from ray import serve\n"
        "def build():\n"
        "    raise RuntimeError('only in a replica')\n"
        "@serve.deployment\n"
        "class Plain:\n"
        "    async def __call__(self, request): ...\n"
        "plain = Plain.bind()\n"
        "@serve.deployment\n"
        "@serve.ingress(build)\n"
        "class Late: ...\n"
        "late = Late.bind()\n"
    )
    for name in ("plain", "late"):
        assert inspect_app(f"{tmp_path / 'routes_none.py'}:{name}").routes == ()
