"""The format of an API key: ``crf_<environment>_<keyId>_<secret><crc>``.

keyId (16 characters) finds the row, secret (32 characters, 190 bits) proves the holder, crc (6 characters) is the
CRC-32 of all before it, so that a mistyped or invented key costs neither a query nor a hash, and secret scanners can
tell a key from noise. All three are base62. The secret alone is what argon2 hashes: keyId is public, and environment
is a word for people, which nothing trusts.
"""

import re
import secrets
import string
import zlib
from dataclasses import dataclass, field

PREFIX = "crf_"
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
KEY_ID_LENGTH = 16
SECRET_LENGTH = 32
# Five base62 digits do not hold 32 bits, six do; they are written two at a time.
CRC_LENGTH = 6
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]

_ENVIRONMENT = re.compile(r"[a-z]{2,8}")
_LONGEST = len(PREFIX) + 8 + 1 + KEY_ID_LENGTH + 1 + SECRET_LENGTH + CRC_LENGTH
# Every repetition is bounded and ends at a character it cannot contain: one pass, nothing to backtrack into.
_TOKEN = re.compile(
    rf"{PREFIX}({_ENVIRONMENT.pattern})_([0-9A-Za-z]{{{KEY_ID_LENGTH}}})_"
    rf"([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CRC_LENGTH}}})"
)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made. `token` is shown to its owner once; `secret` is what gets hashed; `prefix` is kept for people.

    `prefix` is the token's beginning up to the fourth character of key_id (``crf_live_4fGh``): enough for an owner to
    recognise a key in a list, nothing that helps to use it. The repr shows neither token nor secret.
    """

    token: str = field(repr=False)
    key_id: str
    secret: str = field(repr=False)
    prefix: str


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """The parts of a well-formed token. Well formed is not valid: only the hash in the database tells."""

    environment: str
    key_id: str
    secret: str = field(repr=False)


def generate(environment: str) -> NewKey:
    """A new key from the operating system's randomness.

    Takes the word after ``crf_``, 2 to 8 letters a-z. Raises ValueError when it is anything else.
    """
    if not _ENVIRONMENT.fullmatch(environment):
        raise ValueError("environment: 2 to 8 letters a-z, such as live")
    key_id = _random(KEY_ID_LENGTH)
    secret = _random(SECRET_LENGTH)
    return NewKey(token(environment, key_id, secret), key_id, secret, f"{PREFIX}{environment}_{key_id[:4]}")


def token(environment: str, key_id: str, secret: str) -> str:
    """The token of these parts, which are taken as they are."""
    body = f"{PREFIX}{environment}_{key_id}_{secret}"
    return body + _crc(body)


def parse(token: str) -> ParsedKey | None:
    """The parts of `token`, or None when its shape or its CRC is wrong. Takes any string; never raises.

    The work is bounded by the length of a key, however long the string is.
    """
    # The CRC first: it is what most bad keys fail at, and costs less than their shape.
    if len(token) > _LONGEST or not token.isascii() or token[-CRC_LENGTH:] != _crc(token[:-CRC_LENGTH]):
        return None
    match = _TOKEN.fullmatch(token)
    return ParsedKey(match[1], match[2], match[3]) if match is not None else None


def _random(length: int) -> str:
    # secrets.choice draws below 62 by rejection, so every character is equally likely; a byte modulo 62 is not.
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _crc(body: str) -> str:
    number, last = divmod(zlib.crc32(body.encode("ascii")), len(_PAIRS))
    first, middle = divmod(number, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[middle] + _PAIRS[last]
