"""`morphling_ray.tune` in the caller's own process: what it takes, what it refuses, and what it leaves as it was."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import cli
import pytest

from morphling_ray import api
from morphling_ray.console import quiet
from morphling_ray.errors import InputError
from morphling_ray.importable import name_of

APPS = Path(__file__).parent / "apps"


class Thing:
    """Stands for an application: any object that a module has."""


here = Thing()


def python(code: str, folder: Path, *arguments: str, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
    """Runs a script, from standard input unless `code` names a file."""
    script = ["-"] if "\n" in code else [code]
    return subprocess.run(
        [sys.executable, *script, *arguments], input=code, cwd=folder, capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "first", ["import morphling_ray", "import morphling_ray.tune", "from morphling_ray import tune"]
)
@pytest.mark.parametrize("then", ["morphling_ray.tune", "importlib.import_module('morphling_ray').tune"])
def test_it_is_called_whatever_was_imported_first(first: str, then: str, tmp_path: Path) -> None:
    """Fails if the module of that name hides the function, or the function the module's `main`."""
    done = python(
        f"import importlib\n{first}\nimport morphling_ray\nfrom morphling_ray.errors import InputError\n"
        "def refused():\n"
        f"    try:\n        {then}(max_trial=3)\n    except InputError as error:\n        print(error)\n"
        "refused()\nfrom morphling_ray.tune import main\nrefused()\n"
        "import morphling_ray.tune as module\nassert module.main is main\nrefused()\n",
        tmp_path,
    )
    said = "tune has no setting 'max_trial'; did you mean 'max_trials'?\n"
    assert (done.stdout, done.stderr) == (3 * said, "")


def test_an_object_has_the_name_of_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if replicas would look for it in another module or folder, or under what a REPL showed last."""
    monkeypatch.chdir(tmp_path)
    assert name_of(here, "app") == f"{Path(__file__)}:here"
    monkeypatch.chdir(Path(__file__).parent)
    assert name_of(here, "app") == "test_api:here"
    monkeypatch.setattr("builtins._", here, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "again", here, raising=False)
    assert name_of(here, "app") == "test_api:here"
    assert name_of(name_of, "request") == "morphling_ray.importable:name_of"
    with pytest.raises(InputError, match="app: no module has this Thing as a global variable"):
        name_of(Thing(), "app")


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"__file__": "FOLDER/my_app.py"}, "FOLDER/my_app.py:app"),
        ({"__file__": "FOLDER/my.app.py"}, "my.app.py cannot be imported as a module"),
        ({"__file__": "FOLDER/gone.py"}, "%%writefile my_app.py"),
        ({}, "%%writefile my_app.py"),
        ({"__spec__": type("Spec", (), {"name": "package.part"})}, "package.part:app"),
    ],
)
def test_an_object_of_the_script_that_runs(
    attributes: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if `__main__` is written down, which is another module in a replica, or a notebook is not told the way."""
    for file in ("my_app.py", "my.app.py"):
        (tmp_path / file).touch()
    main, thing = ModuleType("__main__"), Thing()
    given = {k: v.replace("FOLDER", str(tmp_path)) if isinstance(v, str) else v for k, v in attributes.items()}
    vars(main).update(given, app=thing)
    monkeypatch.setitem(sys.modules, "__main__", main)
    if named.endswith(":app"):
        assert name_of(thing, "app") == named.replace("FOLDER", str(tmp_path))
    else:
        with pytest.raises(InputError, match=named):
            name_of(thing, "app")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"slo_p99_ms": "fast"}, "slo_p99_ms must be a number, got 'fast'"),
        ({"space": ["cpu_cores"]}, "space must map knob names to lists of values"),
        ({"space": {"cpu_cores": 2}}, "cpu_cores"),
        ({"objective": "speed"}, "unknown objective 'speed'"),
        ({"resume": "nothing"}, "there is no run to go on with"),
        ({"resume": "nothing", "experiment": "x.yaml"}, "leave experiment out"),
        ({"objective": "cheapest"}, "target_rps"),
        ({"request": {"method": "POST", "path": "/", "files": {"image": "no.jpg"}}}, "no.jpg: No such file"),
        ({"experiment": "nothing.yaml"}, "nothing.yaml"),
        ({"request": {"image": float("nan")}}, "request must be a text, a function or a JSON value"),
        ({"request": lambda: 21}, "request: no module has this function"),
        ({"app": "nowhere.to.be.found:app"}, "does not import"),
        ({"app": here}, "is not a Serve application but Thing"),
    ],
)
def test_bad_input_is_one_line(
    arguments: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if it is another exception, or a run directory is left."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        api.tune(**arguments)
    assert said in str(caught.value)
    assert "--" not in str(caught.value)  # flags are of the command line
    assert list(tmp_path.iterdir()) == []


def test_values_of_a_space_may_be_tuples_ranges_and_arrays() -> None:
    """Fails if numpy's numbers reach an experiment file, or a text is taken apart."""
    import numpy as np

    given = {"a": (1, 2), "b": range(1, 3), "c": np.array([1, 2]), "d": [np.float64(0.5)], "e": "text"}
    found: Any = api._lists(given)
    assert found == {"a": [1, 2], "b": [1, 2], "c": [1, 2], "d": [0.5], "e": "text"}
    assert {type(v) for knob in "abc" for v in found[knob]} == {int}
    assert type(found["d"][0]) is float


def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    """Fails if the import of such a script begins a search in itself, or in each replica."""
    (tmp_path / "script.py").write_text(
        "import morphling_ray\nfrom ray import serve\n"
        "@serve.deployment\nclass Model:\n    pass\n\napp = Model.bind()\nmorphling_ray.tune(app, run_dir='out')\n"
    )
    done = python("script.py", tmp_path)
    assert "put the call under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_one_search_at_a_time() -> None:
    """Fails if two threads share the process's one connection to Ray."""
    with api._only_search():
        caught: list[str] = []

        def other() -> None:
            try:
                api.tune()
            except InputError as error:
                caught.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert caught == ["another thread of this process is searching: it has one connection to Ray"]


def test_handlers_and_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the caller's Ctrl-C, or what Ray Tune reads later, is changed; or if a thread fails."""
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def changed() -> None:
        with api._as_it_was():
            os.environ.update(RAY_DEDUP_LOGS="0", TUNE_DISABLE_SIGINT_HANDLER="1")
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert os.environ["RAY_DEDUP_LOGS"] == "1"
        assert "TUNE_DISABLE_SIGINT_HANDLER" not in os.environ

    changed()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    thread = threading.Thread(target=changed)
    thread.start()
    thread.join()


def test_a_notebook_sees_progress_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if progress goes to a file descriptor that no cell shows, or what Ray prints goes to the cell."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    logger = logging.getLogger("rays")  # made before, as that of Ray is where a cell has imported it
    logger.addHandler(logging.StreamHandler(err))
    with quiet(tmp_path / "log") as console:
        print("from a worker")
        logger.warning("from Tune")
        print("from a worker, too", file=sys.stderr)
        print("progress", file=console.stderr)
        print("result", file=console.stdout)
    assert sys.stdout is out
    assert sys.stderr is err
    assert (out.getvalue(), err.getvalue()) == ("result\n", "progress\n")
    logger.warning("of the next cell")
    logger.handlers.clear()
    assert err.getvalue() == "progress\nof the next cell\n"


SCRIPT = """
import json, os, signal, sys, threading
import morphling_ray
from ray import serve
from batched import Doubler

app = Doubler.bind()

def payload():
    return 21

def interrupt(result_dir):
    while not (os.path.exists(result_dir + "/trials.jsonl") and open(result_dir + "/trials.jsonl").read().count("\\n")):
        threading.Event().wait(0.1)
    os.kill(os.getpid(), signal.SIGINT)

def state():
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.stdout, sys.stderr

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background has ignored
    before = state()
    space, objective = {"max_batch_size": (1, 16)}, "rps"
    one = morphling_ray.tune(app, space, request=21, objective=objective, max_trials=2,
                             run_dir="one", quiet=True)
    assert state() == before
    import ray
    assert not ray.is_initialized()
    ray.init("local", num_cpus=2, include_dashboard=False, runtime_env=RUNTIME_ENV, log_to_driver=False)
    before = state()  # Ray has a handler of its own
    threading.Thread(target=interrupt, args=("two",), daemon=True).start()
    two = morphling_ray.tune(app, space, request=payload, objective=objective, max_trials=40, run_dir="two")
    assert ray.is_initialized()
    actors = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)]
    assert state() == before
    print(json.dumps({
        "actors": actors,
        "runs": [[r.peak_rps, len(r.trials), r.interrupted, r.configuration, r.serve_config] for r in (one, two)],
    }))
"""


@pytest.mark.serve
@pytest.mark.timeout(300)
def test_a_script_searches_twice_and_goes_on(tmp_path: Path) -> None:
    """A script in another folder than the current one tunes its own application: with a Ray of ours, then on its own.

    Fails if either search does not serve it, if Ctrl-C loses what was measured or ends the script, if the script's Ray
    is shut down or ours stays, if something of the search stays on it, or if progress is told where it was not wanted.
    """
    from morphling_ray.cluster import quoted_python

    code = tmp_path / "code"
    code.mkdir()
    (code / "batched.py").write_text((APPS / "batched.py").read_text())
    environment = {"py_executable": quoted_python()} if quoted_python() else {}
    (code / "script.py").write_text(SCRIPT.replace("RUNTIME_ENV", repr(environment)))
    done = python(str(code / "script.py"), tmp_path, timeout_s=280.0)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert not [name for name in told["actors"] if "lane" in name or "driver" in name or "SERVE" in name]
    (peak, trials, interrupted, _, config), (_, more, stopped, configuration, _) = told["runs"]
    assert peak > 10
    assert (trials, interrupted) == (2, False)
    assert "import_path: script:app" in config
    assert 1 <= more < 40
    assert stopped
    assert configuration is not None
    assert "using the Ray cluster that this process is connected to" in done.stderr
    assert "starting Ray" not in done.stderr.splitlines()  # of the first search, which was to be quiet
    assert json.loads((tmp_path / "one" / "request.json").read_text()) == 21
    assert "request: request.json" in (tmp_path / "one" / "experiment.yaml").read_text()
    assert len(cli.lines(tmp_path / "two" / "trials.jsonl")) == more
