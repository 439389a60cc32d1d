"""Secrets of an application stay in the config that is deployed."""

from pathlib import Path

import pytest

from morphling_ray.errors import InputError
from morphling_ray.experiment import Experiment, read_experiment
from morphling_ray.masking import has_secrets, is_secret, masked
from morphling_ray.store import RunDirectory

CONFIG = """
applications:
- name: morphling
  deployments:
  - name: Chat
    user_config: {max_tokens: 128, token_budget: 5}
    ray_actor_options:
      runtime_env:
        env_vars:
          HF_TOKEN: hf_abcdef
          AWS_SECRET_ACCESS_KEY: 'x, y'
          OMP_NUM_THREADS: '1'
"""


def test_values_are_masked_and_nothing_else() -> None:
    """Fails if a secret is shown, or a setting that only sounds like one is not."""
    text = masked(CONFIG)
    assert "hf_abcdef" not in text
    assert "x" not in text.split("AWS_SECRET_ACCESS_KEY:")[1].splitlines()[0]
    assert "HF_TOKEN: '***'" in text
    for kept in ("max_tokens: 128", "token_budget: 5", "OMP_NUM_THREADS: '1'"):
        assert kept in text
    assert masked(text) == text
    assert has_secrets(CONFIG)
    assert not has_secrets(text)


@pytest.mark.parametrize(
    "line",
    [
        "env_vars: {OPENAI_API_KEY: sk-1, OTHER: 2}",
        '+          "DB_PASSWORD": hunter2',
        "-          GITHUB_TOKEN: 'ghp_1'  # mine",
    ],
)
def test_forms_of_yaml(line: str) -> None:
    """Fails if a way to write it down is not known."""
    text = masked(line)
    assert not any(secret in text for secret in ("sk-1", "hunter2", "ghp_1"))
    assert "OTHER: 2" in text or "OTHER" not in line


KNOB = "deployments.Chat.ray_actor_options.runtime_env.env_vars.HF_TOKEN"


def test_secret_knobs_have_names_for_values(tmp_path: Path) -> None:
    """Fails if a secret value reaches what is written for others, or if a resumed search does not know it."""
    experiment = Experiment(app="my_app:app", space={KNOB: ["hf_one", "hf_two"], "max_batch_size": [1, 2]})
    assert experiment.space == {KNOB: ["***1", "***2"], "max_batch_size": [1, 2]}
    assert "hf_" not in f"{experiment.to_dict()}{experiment}"
    directory = RunDirectory(tmp_path)
    directory.write_experiment(experiment.to_dict())
    directory.write_secrets(experiment.secrets)
    (private,) = [file for file in tmp_path.iterdir() if "hf_" in file.read_text()]
    assert private.name == "secrets.json"
    assert private.stat().st_mode & 0o077 == 0
    again = Experiment(**read_experiment(tmp_path / "experiment.yaml"), secrets=directory.secrets())
    assert again == experiment
    with pytest.raises(InputError, match=r"secrets\.json that holds them is not there"):
        Experiment(**read_experiment(tmp_path / "experiment.yaml"))


def test_secrets_of_no_environment_are_knobs_like_others() -> None:
    """Fails if a setting that only sounds like a secret is hidden from a report."""
    assert not is_secret("max_tokens")
    assert not is_secret("deployments.Chat.user_config.TOKEN")
    assert is_secret("runtime_env.env_vars.DB_PASSWORD")
