"""Secrets of an application stay in the config that is deployed."""

import pytest

from morphling_ray.masking import has_secrets, masked

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
