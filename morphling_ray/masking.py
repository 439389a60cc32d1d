"""Secrets in environment variables: an application's Serve config holds them, what people pass around must not.

Environment variables are known by their capitals, and secret ones by their names. The config that is deployed keeps
them, in a file that only its owner reads. Where a knob is such a variable, a search has only names for its values,
`***1` and so on: all that it writes has these. What they stand for is in the Serve config, and for `--resume` in
`secrets.json`, which nobody but the owner reads either.
"""

import re
from collections.abc import Sequence
from typing import Any

from morphling_ray.errors import InputError

_WORDS = "TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|API_KEY|ACCESS_KEY|PRIVATE_KEY|AUTH_KEY"
_SECRET = re.compile(rf"""(\b[A-Z0-9_]*(?:{_WORDS})[A-Z0-9_]*['"]?:[ ]+)(?!'\*\*\*')([^\s,}}\]#][^,}}\]\n#]*)""")
_NAME = re.compile(rf"[A-Z0-9_]*(?:{_WORDS})[A-Z0-9_]*")
MASK = "'***'"
_STANDS_FOR = re.compile(r"\*\*\*\d+")
PRESENT = "***0"  # stands for what the application has now, where that is not among a knob's values


def masked(text: str) -> str:
    """YAML, or a difference of two, with `***` for the values of secret environment variables."""
    return _SECRET.sub(rf"\1{MASK}", text)


def has_secrets(text: str) -> bool:
    """Whether there is anything to mask."""
    return _SECRET.search(text) is not None


def is_secret(knob: str) -> bool:
    """Whether a knob is a secret environment variable."""
    *place, name = knob.split(".")
    return "env_vars" in place and _NAME.fullmatch(name) is not None


def hidden(knob: str, values: Sequence[Any], known: dict[str, str]) -> dict[str, str]:
    """What stands for each of a secret knob's values, in their order, and the value.

    Args:
        knob: Its name.
        values: As a user gave them, or what stands for them.
        known: What those stand for.

    Raises:
        InputError: That is not known.
    """
    if not any(_STANDS_FOR.fullmatch(str(value)) for value in values):
        return {f"***{number}": str(value) for number, value in enumerate(values, start=1)}
    if not all(value in known for value in values):
        raise InputError(f"the values of {knob} are secret, and the file secrets.json that holds them is not there")
    return {value: known[value] for value in values}
