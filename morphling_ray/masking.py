"""Secrets in environment variables: an application's Serve config holds them, what people pass around must not.

Environment variables are known by their capitals, and secret ones by their names. The config that is deployed keeps
them, in a file that only its owner reads.
"""

import re

_WORDS = "TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|API_KEY|ACCESS_KEY|PRIVATE_KEY|AUTH_KEY"
_SECRET = re.compile(rf"""(\b[A-Z0-9_]*(?:{_WORDS})[A-Z0-9_]*['"]?:[ ]+)(?!'\*\*\*')([^\s,}}\]#][^,}}\]\n#]*)""")
MASK = "'***'"


def masked(text: str) -> str:
    """YAML, or a difference of two, with `***` for the values of secret environment variables."""
    return _SECRET.sub(rf"\1{MASK}", text)


def has_secrets(text: str) -> bool:
    """Whether there is anything to mask."""
    return _SECRET.search(text) is not None
