"""Secrets that stand where they should not: blotted out of what is logged and answered."""

import re

_REDACTED = "(secret)"
# API keys and their hashes, JSON web tokens, and passwords of databases, as they might stand in an exception's text.
_SECRET = re.compile(
    r"crf_[a-z]{2,8}_\w+|\$argon2\w*(?:\$[\w=+/]+(?:,[a-z]=\d+)*)+|eyJ[\w-]{8,}\.[\w.-]*"
    r"|(?<=://)[^\s/@]*:[^\s/@]+(?=@)|(?<=password=)(?:'(?:[^'\\]|\\.)*'|[^\s'\"]+)"
)


def redacted(text: str) -> str:
    """Give a text with whatever looks like a secret blotted out."""
    return _SECRET.sub(_REDACTED, text)
