"""Experiment files that nobody would write on purpose: each is a plan or one clear line, never a traceback."""

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morphling_ray.experiment import Experiment
from morphling_ray.tune import main

BATCHED = f"{Path(__file__).parent / 'apps' / 'batched.py'}:app"
PIPELINE = f"{Path(__file__).parent / 'apps' / 'pipeline.yaml'}:scoring"
KEYS = [*sorted(set(Experiment.__dataclass_fields__) - {"address"}), "spaces", "max-trials"]  # no cluster is asked
KNOBS = [
    *("cpu_cores", "num_replicas", "max_batch_size", "max_ongoing_requests", "num_gpus", "gpu_type"),
    *("deployments.Doubler.num_replicas", "deployments.Front.user_config.x", "deployments..", "args.seconds", "args."),
    *("runtime_env.env_vars.OMP_NUM_THREADS", "runtime_env.env_vars", "", "lambda", "a b"),
]
SCALARS: "st.SearchStrategy[Any]" = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70_000),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.sampled_from(["", "all", "1", "rps", "cheapest", "../..", "\x00", "morphling", "module:function", "a.yaml"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=4), st.dictionaries(st.sampled_from(KNOBS), SCALARS, max_size=2))
SPACES = st.dictionaries(st.sampled_from(KNOBS), st.one_of(st.lists(SCALARS, max_size=4), SCALARS), max_size=3)
RULES = st.lists(
    st.sampled_from(["cpu_cores <= 2", "cpu_cores", "max_batch_size ** 9 ** 9 <= 1", "(((", "num_replicas == 'two'"]),
    max_size=2,
)
APPS = st.sampled_from([BATCHED, PIPELINE])


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """One or two settings that may be anything, and a space that may be."""
    wild = draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2))
    spelt = {"space": draw(SPACES), "constraints": draw(RULES)} if draw(st.booleans()) else {}
    return {"app": draw(APPS), **spelt, **wild}


@pytest.mark.timeout(120)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(experiments())
def test_anything_in_an_experiment_file_is_a_plan_or_one_line(experiment: dict[str, Any]) -> None:
    """Fails for any exception that is no `InputError`, and for a message of several lines."""
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "experiment.yaml")
        file.write_text(yaml.safe_dump(experiment))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["--dry-run", "--experiment", str(file)])
        assert [p.name for p in Path(folder).iterdir()] == ["experiment.yaml"]
    if status == 0:
        assert json.loads(out.getvalue())["configurations"] >= 1
    else:
        assert status == 2
        assert out.getvalue() == ""
        assert len(err.getvalue().splitlines()) == 1, err.getvalue()
