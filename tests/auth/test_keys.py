import dataclasses
import re
import string
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crafely.auth import keys

ENVIRONMENTS = st.text(string.ascii_lowercase, min_size=2, max_size=8)


@given(ENVIRONMENTS)
def test_what_generate_makes_parse_reads(environment: str) -> None:
    new = keys.generate(environment)
    assert keys.parse(new.token) == keys.ParsedKey(environment, new.key_id, new.secret)
    assert re.fullmatch(r"crf_[a-z]{2,8}_[0-9A-Za-z]{16}_[0-9A-Za-z]{38}", new.token)
    assert (len(new.key_id), len(new.secret)) == (16, 32)
    assert new.prefix == f"crf_{environment}_{new.key_id[:4]}"
    assert new.token.startswith(new.prefix)


def test_the_crc_is_crc32_in_base62_and_padded() -> None:
    # Found by trying: the body's CRC-32 is below 62**4, so its first two digits are the padding.
    body = "crf_live_" + "0" * 16 + "_" + "0" * 27
    numbers = (f"{number:05d}" for number in range(100_000))
    padded = next(body + n for n in numbers if zlib.crc32((body + n).encode()) < 62**4)
    crc, number = "", zlib.crc32(padded.encode())
    while number:
        number, digit = divmod(number, 62)
        crc = (string.digits + string.ascii_uppercase + string.ascii_lowercase)[digit] + crc
    assert len(crc) <= 4
    assert keys.parse(padded + crc.rjust(6, "0")) is not None
    assert keys.parse(padded + crc) is None


@given(st.data())
def test_one_changed_character_is_refused(data: st.DataObject) -> None:
    token = keys.generate("live").token
    position = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters().filter(lambda c: c != token[position]))
    assert keys.parse(token[:position] + other + token[position + 1 :]) is None


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_piece_of_a_token_is_refused(start: int, end: int) -> None:
    token = keys.generate("live").token
    piece = token[start:end]
    assert piece == token or keys.parse(piece) is None


@given(st.text())
@example("")
@example("crf_")
@example("crf_live_" + "٣" * 16 + "_" + "٣" * 38)
@example("crf_live_" + "0" * 16 + "_" + "0" * 38)
@example("crf_live_" + "a" * 1_000_000)
@example("crf_" + "a" * 1_000_000 + "_")
@example("crf_live_" + "\0" * 16 + "_" + "\0" * 38)
@example("\ud800")
def test_any_other_string_is_refused(text: str) -> None:
    assert keys.parse(text) is None


@pytest.mark.parametrize("dirt", ["\n", " ", "\0", "=", "é" * 10, "0" * 38])
def test_a_token_with_dirt_around_it_is_refused(dirt: str) -> None:
    token = keys.generate("live").token
    assert keys.parse(token + dirt) is None
    assert keys.parse(dirt + token) is None


@pytest.mark.parametrize("environment", ["", "a", "LIVE", "live_x", "ninechars", "live\n", "l1ve", "lïve"])
def test_an_environment_that_is_no_word_is_refused(environment: str) -> None:
    with pytest.raises(ValueError, match="2 to 8 letters"):
        keys.generate(environment)


def test_neither_token_nor_secret_is_in_a_repr() -> None:
    new = keys.generate("live")
    parsed = keys.parse(new.token)
    for shown in (repr(new), str(new), repr(parsed), str([parsed])):
        assert new.secret not in shown
        assert new.key_id in shown


def test_a_key_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        keys.generate("live").key_id = "x"  # type: ignore[misc] # the point of the test


def test_every_character_of_the_alphabet_is_used_and_keys_differ() -> None:
    made = [keys.generate("live") for _ in range(200)]
    assert len({key.key_id for key in made}) == len({key.secret for key in made}) == 200
    # 6,400 characters: that one of 62 is missing happens once in 10^43 runs.
    assert set("".join(key.secret for key in made)) == set(keys.ALPHABET)
    assert len(keys.ALPHABET) == len(set(keys.ALPHABET)) == 62
