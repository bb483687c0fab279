"""What is sealed opens in its own place with its own key, whole, and nowhere else."""

import base64
import os
import re
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crafely import keyring
from crafely.config import SettingsError, load
from crafely.keyring import CHUNK, KEY, NONCE, SALT, TAG, Keyring, KeyringError, UnreadableError

K1, K2 = (f"{id_}:{base64.b64encode(bytes([number]) * KEY).decode()}" for number, id_ in enumerate(("k1", "k2")))
PLACE = ("agents", "instructions", "agnt_1")
# What PostgreSQL stores as text.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300)


def ring(*entries: str) -> Keyring:
    return keyring.parse(",".join(entries))


# Texts.


@given(texts, st.sampled_from([("off",), (K1,), (K2, K1), ("off", K1)]))
def test_any_text_comes_back_and_is_not_to_be_seen(text: str, keys: tuple[str, ...]) -> None:
    stored = ring(*keys).seal(text, *PLACE)
    assert ring(*keys).open(stored, *PLACE) == text
    assert "\0" not in stored
    if keys[0] != "off":
        assert re.fullmatch(r"crafely:1:k[12]:[A-Za-z0-9+/]+=*", stored)
        assert len(base64.b64decode(stored.rpartition(":")[2])) == NONCE + len(text.encode()) + TAG


@given(st.sampled_from(["crafely:0:", "crafely:1:", "crafely:7:", "crafely:", "crafely:1"]), texts)
def test_a_text_that_looks_sealed_is_still_a_text(start: str, text: str) -> None:
    off = ring("off", K1)
    assert off.open(off.seal(start + text, *PLACE), *PLACE) == start + text


def test_what_was_stored_in_clear_before_is_read_until_all_is_sealed() -> None:
    reading = ring(K1)
    assert reading.open("Review the SQL.", *PLACE) == "Review the SQL."
    reading.reads_clear = False
    for clear in ("Review the SQL.", "crafely:0:Review the SQL.", ""):
        with pytest.raises(UnreadableError, match="is in clear"):
            reading.open(clear, *PLACE)


def test_the_same_text_is_never_stored_twice_alike() -> None:
    assert len({ring(K1).seal("", *PLACE) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "place",
    [
        ("threads", "instructions", "agnt_1"),
        ("agents", "context", "agnt_1"),
        ("agents", "instructions", "agnt_2"),
        ("agents", "instructions", ""),
        ("agents", "instructions"),
        ("agents", "instructionsagnt_1"),
        ("agentsinstructions", "", "agnt_1"),
        (),
    ],
)
def test_a_text_opens_in_no_other_place(place: tuple[str, ...]) -> None:
    stored = ring(K1).seal("secret words", *PLACE)
    with pytest.raises(UnreadableError) as refused:
        ring(K1).open(stored, *place)
    assert "secret" not in str(refused.value)


def test_no_flipped_bit_goes_unseen() -> None:
    reading = ring(K1, K2)
    stored = reading.seal("secret words", *PLACE)
    reading.reads_clear = False
    for at in range(len(stored)):
        for bit in range(7):
            damaged = stored[:at] + chr(ord(stored[at]) ^ 1 << bit) + stored[at + 1 :]
            with pytest.raises(UnreadableError):
                reading.open(damaged, *PLACE)
    for damaged in (stored[:-1], stored[:-4], stored + "A", stored + "\n", stored[:14], stored[:10]):
        with pytest.raises(UnreadableError):
            reading.open(damaged, *PLACE)


def test_a_key_that_is_not_here_is_named_and_another_one_of_its_id_opens_nothing() -> None:
    stored = ring(K1).seal("secret words", *PLACE)
    with pytest.raises(
        UnreadableError, match="agents/instructions/agnt_1 is sealed with the key k1, which is not here"
    ):
        ring(K2).open(stored, *PLACE)
    with pytest.raises(UnreadableError, match="another key k1"):
        ring(K2.replace("k2:", "k1:")).open(stored, *PLACE)
    # The id is part of what is authenticated.
    with pytest.raises(UnreadableError):
        ring(K2, K1.replace("k1:", "k3:")).open(stored.replace("k1", "k3"), *PLACE)


def test_a_form_of_a_later_release_is_not_taken_for_a_text() -> None:
    for stored in ("crafely:2:k1:AAAA", "crafely:1:k1", "crafely:1:a key:AAAA"):
        assert keyring.key_id(stored) is None
        with pytest.raises(UnreadableError, match="of a form that this release does not know"):
            ring(K1).open(stored, *PLACE)
    assert keyring.key_id(ring(K1).seal("text", *PLACE)) == "k1"
    assert keyring.key_id("text: k1: AAAA") is None


class Row(msgspec.Struct, frozen=True):
    id: str
    name: str
    instructions: str
    context: str | None = None


def test_the_columns_of_a_row() -> None:
    sent = {"instructions": "Review.", "context": None, "tools": msgspec.UNSET}
    sealed = ring(K1).seal_columns("agents", "agnt_1", sent)
    assert (sealed["context"], sealed["tools"]) == (None, msgspec.UNSET)
    row = Row(id="agnt_1", name="crafely", instructions=sealed["instructions"])
    opened = ring(K1).open_columns("agents", row, ("instructions", "context"))
    assert opened == Row(id="agnt_1", name="crafely", instructions="Review.")
    with pytest.raises(UnreadableError):
        ring(K1).open_columns("threads", row, ("instructions",))
    # An empty text is one like any other: where all is sealed, it was put there by somebody else.
    reading = ring(K1)
    reading.reads_clear = False
    with pytest.raises(UnreadableError):
        reading.open_columns("agents", msgspec.structs.replace(row, context=""), ("instructions", "context"))


# Streams.

SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5]


def sealed_stream(data: bytes, name: str = "usage", step: int = 50_000, keys: Keyring | None = None) -> bytes:
    sealer = (keys or ring(K1)).sealer(name)
    parts = [sealer.update(data[at : at + step]) for at in range(0, len(data), step)]
    return b"".join([*parts, sealer.finish()])


def opened_stream(data: bytes, name: str = "usage", step: int = 50_000, keys: Keyring | None = None) -> bytes:
    opener = (keys or ring(K1)).opener(name)
    parts = [opener.update(data[at : at + step]) for at in range(0, len(data), step)]
    return b"".join([*parts, opener.finish()])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keys", [(K1,), ("off",)])
def test_a_stream_comes_back_however_it_is_cut(size: int, keys: tuple[str, ...]) -> None:
    data = os.urandom(size)
    for step in (17 if size < CHUNK else 4099, CHUNK, CHUNK + TAG, 10**6):
        stream = sealed_stream(data, step=step, keys=ring(*keys))
        assert opened_stream(stream, step=step + 1, keys=ring(*keys)) == data
        if keys != ("off",):
            # No chunk is empty but the only one.
            assert len(stream) == len(b"crafely:1:k1\n") + SALT + size + TAG * max(1, -(-size // CHUNK))
        assert (data[:64] in stream) == (keys == ("off",) or not size) or size < 8


def chunks(stream: bytes) -> tuple[bytes, list[bytes]]:
    """The beginning of a stream with its salt, and its chunks."""
    start = stream.index(b"\n") + 1 + SALT
    return stream[:start], [stream[at : at + CHUNK + TAG] for at in range(start, len(stream), CHUNK + TAG)]


def damages(stream: bytes, other: bytes) -> Iterator[bytes]:
    head, parts = chunks(stream)
    _, others = chunks(other)
    a, b, c = parts
    for order in ([b, a, c], [a, c], [a, b], [a], [], [b, c], [c], [a, a, b, c], [a, b, c, c], [a, b, b, c], [a, c, b]):
        yield head + b"".join(order)
    # From another stream with the same key and name.
    yield head + b"".join([a, others[1], c])
    yield head + b"".join(others)
    yield stream + b"\0"
    for cut in (1, TAG, TAG + 1, len(c), len(c) + 1, CHUNK, len(stream) - len(head), len(stream) - 5, len(stream)):
        yield stream[:-cut]
    for at in (*range(len(head)), len(head), len(head) + CHUNK, len(head) + CHUNK + TAG, len(stream) - 1):
        yield stream[:at] + bytes([stream[at] ^ 1]) + stream[at + 1 :]


def test_a_stream_that_is_cut_off_or_put_together_otherwise_is_refused() -> None:
    data = os.urandom(2 * CHUNK + 77)
    stream, other = sealed_stream(data), sealed_stream(data)
    assert len(chunks(stream)[1]) == 3
    tried = 0
    for damaged in damages(stream, other):
        with pytest.raises(UnreadableError):
            opened_stream(damaged)
        tried += 1
    assert tried > 60


def test_a_stream_opens_under_its_own_name_and_with_its_own_key() -> None:
    stream = sealed_stream(b"data", keys=ring(K2, K1))
    assert opened_stream(stream, keys=ring(K1, K2)) == b"data"
    assert opened_stream(stream, keys=ring("off", K2)) == b"data"
    with pytest.raises(UnreadableError, match="agents is damaged"):
        opened_stream(stream, name="agents", keys=ring(K2))
    with pytest.raises(UnreadableError, match="usage is sealed with the key k2, which is not here"):
        opened_stream(stream, keys=ring(K1))


def test_a_ring_that_seals_takes_no_stream_in_clear() -> None:
    stream = sealed_stream(b"data", keys=ring("off"))
    assert opened_stream(stream, keys=ring("off", K1)) == b"data"
    with pytest.raises(UnreadableError, match="usage is in clear"):
        opened_stream(stream)


def test_a_sealed_text_is_no_stream_and_texts_and_streams_have_keys_apart() -> None:
    text = ring(K1).seal("x" * 100, *PLACE)
    with pytest.raises(UnreadableError):
        opened_stream(text.encode())
    head, (chunk,) = chunks(sealed_stream(b"x" * 100))
    forged = base64.b64encode(b"\0" * (NONCE - 1) + b"\1" + chunk).decode()
    with pytest.raises(UnreadableError):
        ring(K1).open(f"crafely:1:k1:{forged}", "usage")
    assert head.startswith(b"crafely:1:k1\n")


def test_a_stream_takes_little_memory_however_long_it_is() -> None:
    sealer, opener = ring(K1).sealer("usage"), ring(K1).opener("usage")
    piece = bytes(CHUNK)
    tracemalloc.start()
    for _ in range(200):
        opener.update(sealer.update(piece))
    opener.update(sealer.finish())
    opener.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * CHUNK


# Where keys come from.


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "no key"),
        (" , ", "no key"),
        ("AAAA", "entry 1: expected off, or id:key"),
        (f"{K1},AAAA", "entry 2: expected off, or id:key"),
        (f":{K1}", "entry 1: expected off, or id:key"),
        (K1.replace("k1", "a key"), "entry 1: expected off, or id:key"),
        (K1.replace("k1", "k" * 33), "entry 1: expected off, or id:key"),
        (K1.replace("k1", "off"), "entry 1: expected off, or id:key"),
        (f"{K1},{K2.replace('k2', 'k1')}", "entry 2: the id k1 is there twice"),
        (f"{K1},{K1.replace('k1', 'k2')}", "entry 2: the key k2 is another one's too"),
        ("k1:AAAA", "entry 1: expected a key of 32 bytes, got 3"),
        (K1 + "A", "entry 1: what stands behind the id is not base64"),
        (K1.rstrip("="), "entry 1: what stands behind the id is not base64"),
        ("k1:" + "é" * 44, "entry 1: what stands behind the id is not base64"),
        (f"{K1},off", "entry 2: off is the first entry"),
        ("off,off", "entry 2: off is the first entry"),
    ],
)
def test_keys_that_cannot_be_used_are_told_without_showing_them(text: str, rule: str) -> None:
    with pytest.raises(KeyringError, match=re.escape(rule)) as refused:
        keyring.parse(text)
    assert "AAAA" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_first_key_writes_and_no_key_is_shown() -> None:
    keys = keyring.parse(f"{K2}\n{K1}\n")
    assert (keys.writes, keys.ids) == ("k2", ("k2", "k1"))
    assert repr(keys) == str(keys) == "Keyring(writes=k2, ids=k2, k1)"
    assert (ring("off", K1).writes, repr(ring("off"))) == (None, "Keyring(writes=off, ids=)")


def test_the_setting_holds_keys_and_shows_none() -> None:
    settings = load({"CRAFELY_ENCRYPTION_KEYS": f"{K1}, {K2}"})
    assert settings.encryption_keys is not None
    assert settings.encryption_keys.ids == ("k1", "k2")
    assert K1.partition(":")[2] not in repr(settings)
    assert load({}).encryption_keys is None
    with pytest.raises(SettingsError, match="CRAFELY_ENCRYPTION_KEYS: entry 1: expected a key of 32 bytes, got 3"):
        load({"CRAFELY_ENCRYPTION_KEYS": "k1:AAAA"})


# The file of the embedded default.


def test_a_key_file_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "encryption.key"
    assert keyring.read(path) is None
    umask = os.umask(0)
    try:
        made = keyring.make(path, "local")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    stored = made.seal("text", *PLACE)
    for again in (keyring.make(path, "other"), keyring.read(path)):
        assert again is not None
        assert again.open(stored, *PLACE) == "text"
    assert [file.name for file in tmp_path.iterdir()] == ["encryption.key"]


def test_two_that_make_the_file_at_once_agree(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from crafely import keyring; sys.stdin.read(1); "
        "print(keyring.make(pathlib.Path(sys.argv[1]), 'local').seal('text', 'place'))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "encryption.key")]
    makers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for maker in makers:
            assert maker.stdin is not None
            maker.stdin.write("x")
            maker.stdin.flush()
        outs = [maker.communicate(timeout=60)[0].strip() for maker in makers]
    finally:
        for maker in makers:
            with suppress(OSError):
                maker.kill()
    kept = keyring.read(tmp_path / "encryption.key")
    assert kept is not None
    assert [kept.open(out, "place") for out in outs] == ["text"] * 4


def test_who_comes_second_takes_the_first_ones_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the link another process has made the file."""
    path = tmp_path / "encryption.key"
    first = keyring.make(path, "local")
    real, looks = keyring.read, iter([None])
    monkeypatch.setattr(keyring, "read", lambda path: next(looks, real(path)))
    assert keyring.make(path, "local").open(first.seal("text", *PLACE), *PLACE) == "text"


def test_a_key_file_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "encryption.key"
    (tmp_path / "real").write_text(K1)
    path.symlink_to(tmp_path / "real")
    with pytest.raises(KeyringError, match="cannot be read"):
        keyring.read(path)
    path.unlink()
    path.write_text("local:AAAA\n")
    with pytest.raises(KeyringError, match=r"encryption\.key: entry 1: expected a key of 32 bytes"):
        keyring.make(path, "local")
    assert path.read_text() == "local:AAAA\n"
    path.write_bytes(b"\xff")
    with pytest.raises(KeyringError, match="not ASCII"):
        keyring.read(path)
    with pytest.raises(KeyringError, match="cannot be written"):
        keyring.make(tmp_path / "nowhere" / "encryption.key", "local")
