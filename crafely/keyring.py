"""Keys for what is stored encrypted, and its two forms: a sealed text and a sealed stream. AES-256-GCM, cryptography's.

A sealed text names its form and its key: «crafely:1:<key id>:<base64 of nonce, ciphertext and tag>». What it belongs
to (table, column, row) is associated data, so that it can be opened in no other place. A text in clear stands as it is,
but one that looks sealed is stored behind «crafely:0:».

A sealed stream is a line «crafely:1:<key id>», 32 random bytes, and chunks of 64 KiB of text, each with its tag. Each
stream has a key of its own, derived from those bytes; a chunk's nonce is its number and whether it is the last one, so
that none can be left out, moved, or taken from elsewhere (https://eprint.iacr.org/2015/189, STREAM).

Texts have random nonces of 96 bits: one key is good for 2**32 of them (NIST SP 800-38D, 8.3), which is more than a
table of agents will have; rotate before.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

T = TypeVar("T", bound=msgspec.Struct)

# What stands for no key: texts are stored in clear.
OFF = "off"
# The bytes of a key, of a nonce, of a tag, and of a stream's salt.
KEY, NONCE, TAG, SALT = 32, 12, 16, 32
# The bytes of a chunk before it is sealed.
CHUNK = 64 * 1024

_CLEAR, _SEALED = "crafely:0:", "crafely:1:"
_FORM = re.compile(r"crafely:\d+:")
_ID = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_ENTRY = f"expected {OFF}, or id:key with an id of 1 to 32 letters, digits, «_.-» and the base64 of {KEY} random bytes"


class KeyringError(ValueError):
    """Keys that cannot be used: one line for whoever runs the program, with ids and never a key."""


class UnreadableError(Exception):
    """Something sealed that this ring cannot open: its key is not here, or it is damaged, or from another place."""


def sealed_columns(row_type: type[msgspec.Struct]) -> tuple[str, ...]:
    """The columns of a row of sealed texts: all but its id."""
    return tuple(name for name in row_type.__struct_fields__ if name != "id")


class Keyring:
    """Some keys, of which the first one writes and all read. It never shows one of them."""

    def __init__(self, keys: Mapping[str, bytes], *, writes: str | None) -> None:
        """Takes keys of 32 bytes by their ids, and the id of the one that writes; None stores in clear."""
        self._roots = dict(keys)
        # Derived: what seals texts never seals anything else.
        self._texts = {id_: AESGCM(_derive(key, b"", b"crafely text")) for id_, key in keys.items()}
        self.writes = writes
        # Whether a text in clear is taken for one; where everything is sealed, it was put there by somebody else.
        self.reads_clear = True

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all keys, the one that writes first."""
        return tuple(self._roots)

    def __repr__(self) -> str:
        return f"Keyring(writes={self.writes or OFF}, ids={', '.join(self.ids)})"

    def seal(self, text: str, *place: str) -> str:
        """Gives a text as it is stored. Takes the place that it belongs to: table, column and row id."""
        if self.writes is None:
            return _CLEAR + text if _FORM.match(text) else text
        nonce = os.urandom(NONCE)
        sealed = self._texts[self.writes].encrypt(nonce, text.encode(), _associated(self.writes, place))
        return f"{_SEALED}{self.writes}:{base64.b64encode(nonce + sealed).decode()}"

    def open(self, stored: str, *place: str) -> str:
        """Gives the text of what is stored at a place. Raises UnreadableError, with ids and no text in its message."""
        where = "/".join(place)
        if not _FORM.match(stored) or stored.startswith(_CLEAR):
            if not self.reads_clear:
                raise UnreadableError(f"{where} is in clear, and all texts of this database are sealed")
            return stored.removeprefix(_CLEAR)
        id_ = key_id(stored)
        if id_ is None:
            raise UnreadableError(f"{where} is of a form that this release does not know")
        cipher = self._texts.get(id_)
        if cipher is None:
            raise UnreadableError(f"{where} is sealed with the key {id_}, which is not here")
        encoded = stored[len(_SEALED) + len(id_) + 1 :]
        try:
            raw = base64.b64decode(encoded, validate=True)
            # Several texts of base64 stand for the same bytes; only one of them was written here.
            if base64.b64encode(raw).decode() == encoded and len(raw) >= NONCE + TAG:
                return cipher.decrypt(raw[:NONCE], raw[NONCE:], _associated(id_, place)).decode()
        except (binascii.Error, ValueError, InvalidTag):
            pass
        raise UnreadableError(f"{where} is damaged, or was sealed in another place, or with another key {id_}")

    def seal_columns(self, table: str, id: str, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Gives the columns of a row as they are stored; what is no text (null, nothing sent) stays as it is."""
        return {
            name: self.seal(text, table, name, id) if isinstance(text, str) else text for name, text in columns.items()
        }

    def open_columns(self, table: str, row: T, columns: Sequence[str]) -> T:
        """Gives a row, which has an id, with the texts of its sealed columns. Raises UnreadableError."""
        id_ = row.id  # type: ignore[attr-defined]  # every row that is sealed has one
        stored = {name: getattr(row, name) for name in columns}
        return msgspec.structs.replace(
            row, **{name: self.open(text, table, name, id_) for name, text in stored.items() if text is not None}
        )

    def sealer(self, name: str) -> "Sealer":
        """Gives what seals one stream. The name is what it is: it opens under no other."""
        return Sealer(self, name)

    def opener(self, name: str) -> "Opener":
        """Gives what opens a stream that was sealed under a name."""
        return Opener(self, name)

    def stream_cipher(self, id: str, salt: bytes) -> AESGCM:
        """Gives the cipher of one stream. Raises UnreadableError where the key is not here."""
        if id not in self._roots:
            raise UnreadableError(f"sealed with the key {id}, which is not here")
        return AESGCM(_derive(self._roots[id], salt, b"crafely stream"))


class Sealer:
    """Seals a stream: ``update`` with some bytes, as often as there are any, and ``finish`` give what is to be written.

    It keeps one chunk in memory, beside what it was just given. A ring that stores in clear writes the bytes themselves
    behind a line that says so.
    """

    def __init__(self, ring: Keyring, name: str) -> None:
        self._name = name.encode()
        self._waiting = bytearray()
        self._number = 0
        self._cipher: AESGCM | None = None
        self._head = f"{_CLEAR}{OFF}\n".encode()
        if ring.writes is not None:
            salt = os.urandom(SALT)
            self._cipher = ring.stream_cipher(ring.writes, salt)
            self._head = f"{_SEALED}{ring.writes}\n".encode() + salt

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        """Takes the next bytes, gives those to be written; perhaps none yet."""
        head, self._head = self._head, b""
        if self._cipher is None:
            return head + bytes(data)
        self._waiting += data
        out = [head]
        # A full chunk waits for the next byte: only then is it known not to be the last.
        while len(self._waiting) > CHUNK:
            out.append(self._chunk(self._cipher, bytes(self._waiting[:CHUNK]), last=False))
            del self._waiting[:CHUNK]
        return b"".join(out)

    def finish(self) -> bytes:
        """Gives the end of the stream. A stream without it counts as cut off."""
        head, self._head = self._head, b""
        if self._cipher is None:
            return head
        return head + self._chunk(self._cipher, bytes(self._waiting), last=True)

    def _chunk(self, cipher: AESGCM, data: bytes, *, last: bool) -> bytes:
        sealed = cipher.encrypt(_nonce(self._number, last=last), data, self._name)
        self._number += 1
        return sealed


class Opener:
    """Opens a stream: ``update`` with some bytes, as often as there are any, and ``finish`` give what was sealed.

    What they give has been authenticated, but whether it is all of it is known only when ``finish`` returns: until then
    nothing may be believed to be complete. Both raise UnreadableError. A ring that seals takes no stream in clear: who
    can write a file could write that. One in clear has no tags, so what is in it needs checksums of its own.
    """

    def __init__(self, ring: Keyring, name: str) -> None:
        self._ring = ring
        self._label = name
        self._name = name.encode()
        self._waiting = bytearray()
        self._number = 0
        self._begun = False
        # None, once it has begun: it is in clear.
        self._cipher: AESGCM | None = None
        # The key's id, once it has begun; None: in clear.
        self.key_id: str | None = None

    def update(self, data: bytes | bytearray | memoryview) -> bytes:
        """Takes the next bytes as they were written, gives those that they stand for; perhaps none yet."""
        self._waiting += data
        if not self._begun and not self._begin():
            return b""
        if self._cipher is None:
            out, self._waiting = bytes(self._waiting), bytearray()
            return out
        parts = []
        while len(self._waiting) > CHUNK + TAG:
            parts.append(self._chunk(self._cipher, bytes(self._waiting[: CHUNK + TAG]), last=False))
            del self._waiting[: CHUNK + TAG]
        return b"".join(parts)

    def finish(self) -> bytes:
        """Gives the last of the bytes, and says by returning that nothing is missing, at the end or before."""
        if not self._begun:
            raise UnreadableError(f"{self._label} is no sealed stream, or is cut off")
        if self._cipher is None:
            return b""
        return self._chunk(self._cipher, bytes(self._waiting), last=True)

    def _begin(self) -> bool:
        line, newline, _ = bytes(self._waiting[:64]).partition(b"\n")
        if not newline and len(self._waiting) < 64:
            return False
        head = line.decode(errors="replace")
        if newline and head == f"{_CLEAR}{OFF}":
            if self._ring.writes is not None:
                raise UnreadableError(f"{self._label} is in clear; to read it, store in clear ({OFF} as the first key)")
            del self._waiting[: len(line) + 1]
            self._begun = True
            return True
        id_ = head.removeprefix(_SEALED)
        if not newline or not head.startswith(_SEALED) or not _ID.fullmatch(id_):
            raise UnreadableError(f"{self._label} is no sealed stream, or is damaged")
        size = len(line) + 1 + SALT
        if len(self._waiting) < size:
            return False
        try:
            self._cipher = self._ring.stream_cipher(id_, bytes(self._waiting[size - SALT : size]))
        except UnreadableError as error:
            raise UnreadableError(f"{self._label} is {error}") from None
        self.key_id = id_
        del self._waiting[:size]
        self._begun = True
        return True

    def _chunk(self, cipher: AESGCM, data: bytes, *, last: bool) -> bytes:
        try:
            opened = cipher.decrypt(_nonce(self._number, last=last), data, self._name)
        except (InvalidTag, ValueError):
            raise UnreadableError(
                f"{self._label} is damaged, cut off, or another one (chunk {self._number + 1})"
            ) from None
        self._number += 1
        return opened


def key_id(stored: str) -> str | None:
    """Gives the id of the key that a stored text is sealed with; None for a text in clear, or of no known form."""
    id_, colon, _ = stored.removeprefix(_SEALED).partition(":")
    return id_ if colon and stored.startswith(_SEALED) and _ID.fullmatch(id_) else None


def parse(text: str) -> Keyring:
    """Reads keys: «id:base64 of 32 bytes», separated by commas or lines; the first writes, all read.

    «off» as the first entry stores in clear, and the keys behind it still read. Raises KeyringError.
    """
    entries = [entry.strip() for entry in re.split(r"[,\n]", text) if entry.strip()]
    if not entries:
        raise KeyringError(f"no key; {_ENTRY}")
    keys: dict[str, bytes] = {}
    writes = None
    for number, entry in enumerate(entries, 1):
        if entry == OFF:
            if number > 1:
                raise KeyringError(f"entry {number}: {OFF} is the first entry, or none: text in clear is read anyway")
            continue
        id_, key = _entry(entry, number)
        if id_ in keys:
            raise KeyringError(f"entry {number}: the id {id_} is there twice")
        if key in keys.values():
            raise KeyringError(f"entry {number}: the key {id_} is another one's too")
        keys[id_] = key
        if number == 1:
            writes = id_
    return Keyring(keys, writes=writes)


def _entry(entry: str, number: int) -> tuple[str, bytes]:
    """The id and the key of an entry, which no message repeats: what looks like an id may be half of a key."""
    id_, colon, encoded = entry.partition(":")
    if not colon or not _ID.fullmatch(id_) or id_ == OFF:
        raise KeyringError(f"entry {number}: {_ENTRY}")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise KeyringError(f"entry {number}: what stands behind the id is not base64") from None
    if len(key) != KEY:
        raise KeyringError(f"entry {number}: expected a key of {KEY} bytes, got {len(key)}")
    return id_, key


def generate(id: str) -> str:
    """Gives a new random key, as ``parse`` reads it."""
    return f"{id}:{base64.b64encode(os.urandom(KEY)).decode()}"


def read(path: Path) -> Keyring | None:
    """Reads a file of keys; None where there is no such file. Raises KeyringError."""
    try:
        with open(path, encoding="ascii", opener=_open_no_link) as file:
            return parse(file.read(64 * 1024))
    except FileNotFoundError:
        return None
    except KeyringError as error:
        raise KeyringError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyringError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not ASCII'})") from None


def make(path: Path, id: str) -> Keyring:
    """Makes a file (mode 0600) with a new key unless there is one, and reads it: whoever makes it at once, all agree.

    It is on the disk, under its name and complete, before this returns. Raises KeyringError.
    """
    if (ring := read(path)) is not None:
        return ring
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        folder = path.parent.stat()
        with open(unfinished, "x", encoding="ascii", opener=_open_no_link) as file:
            os.fchmod(file.fileno(), 0o600)
            if os.geteuid() == 0:
                # As root in another user's folder: it is that user's who runs this tomorrow.
                os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
            file.write(generate(id) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            # Unlike a rename, this never replaces what somebody else has just made.
            os.link(unfinished, path)
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise KeyringError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            unfinished.unlink()
    ring = read(path)
    if ring is None:
        raise KeyringError(f"{path}: somebody removes it while it is made")
    return ring


def _open_no_link(path: str, flags: int) -> int:
    """An opener for open(): a link in another user's folder must not lead us to a file of ours."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _derive(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY, salt=salt or None, info=purpose).derive(key)


def _associated(id: str, place: Sequence[str]) -> bytes:
    # No part can hold the separator: PostgreSQL stores no such character.
    return "\0".join((_SEALED, id, *place)).encode()


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(NONCE - 1, "big") + (b"\1" if last else b"\0")
