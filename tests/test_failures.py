"""What failures are called: by what Serve, Ray or a request say of them."""

from pathlib import Path

import pytest

from morphling_ray.serving.failures import failed_check, last_words, of_requests, on_load, under_load

TRACEBACK = """ray::Model.__init__()
  File "model.py", line 3, in __init__
    raise {error}
{error}
"""


@pytest.mark.parametrize(
    ("error", "called"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out of memory on load: torch."),
        ("MemoryError: cannot allocate", "out of memory on load: MemoryError"),
        ("ValueError: no such checkpoint", "failed to start: ValueError: no such checkpoint"),
    ],
)
def test_a_replica_that_does_not_start(error: str, called: str) -> None:
    """Fails if the reason is not the last line of the traceback, or if memory is not named."""
    assert on_load(TRACEBACK.format(error=error)).startswith(called)
    assert on_load("") == "failed to start: unknown"


def test_requests_that_fail() -> None:
    """Fails if a batch that is too large, a replica that died and an application's own error look alike."""
    assert of_requests("OutOfMemoryError: CUDA out of memory", 16).startswith("out of memory at batch size 16: Out")
    assert of_requests("MemoryError: no", 1).startswith("out of memory: MemoryError")
    assert of_requests("ActorDiedError: The actor died unexpectedly", 8).startswith("crash under load: ActorDied")
    assert of_requests("ZeroDivisionError: by zero", 8) == "requests failed: ZeroDivisionError: by zero"


def test_replicas_that_are_replaced() -> None:
    """Fails if what killed them is known and not said."""
    assert under_load("", 8) == "crash under load: a replica was replaced during the measurement, twice"
    assert under_load("ActorDiedError: it died", 8).endswith("twice: ActorDiedError: it died")
    killed = "OutOfMemoryError: Task was killed due to the node running low on memory."
    assert under_load(killed, 8).startswith("out of memory at batch size 8")


def test_a_failed_health_check_is_named(tmp_path: Path) -> None:
    """Fails if the check of another replica is taken, an earlier one, or a line of the traceback that says nothing."""
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "controller_build_app_1.log").write_text(
        "WARNING 2026-12-01 Replica(id='a') health check\nno\n"
    )
    (tmp_path / "serve" / "controller_22.log").write_text(
        "INFO 2026-12-01 12:00:00,000 controller 22 -- Starting Replica(id='a', deployment='D', app='x').\n"
        "WARNING 2026-12-01 12:00:01,000 controller 22 -- Health check for Replica(id='a') failed: ray::x\n"
        '  File "app.py", line 16, in check_health\n'
        '    raise RuntimeError("no card")\n'
        "RuntimeError: no card\n"
        "WARNING 2026-12-01 12:00:02,000 controller 22 -- Replica Replica(id='a') failed health check, stopping it.\n"
        "WARNING 2026-12-01 12:00:03,000 controller 22 -- Didn't receive health check response for replica "
        "Replica(id='b', deployment='D', app='x') after 30.0s, marking it unhealthy.\n"
    )
    assert failed_check(tmp_path, ["a"]) == "its health check failed: RuntimeError: no card"
    assert failed_check(tmp_path, ["c", "b"]) == "no answer to a health check within 30 s"
    assert failed_check(tmp_path, ["c"]) == failed_check(tmp_path / "none", ["a"]) == ""


def test_last_words_are_those_of_the_process(tmp_path: Path) -> None:
    """Fails if another worker's log is taken, or all of a long one."""
    (tmp_path / "worker-a-01-7.err").write_text("other")
    (tmp_path / "worker-b-01-77.err").write_text("x" * 10_000 + "\nthe end\n")
    assert last_words(tmp_path, 77).endswith("the end")
    assert len(last_words(tmp_path, 77)) <= 4000
    assert last_words(tmp_path, 5) == ""
