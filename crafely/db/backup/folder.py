"""Where backups are: a folder for each, under the time of its moment, and how one becomes complete or is found damaged.

20261128T130000-123Z/           complete: it got this name when everything in it was on the disk
    manifest.json               what it holds, with a seal over it
    <table>.copy.gz[.sealed]    the rows of a table
.20261128T130000-123Z.partial/  being made, or left by somebody who was killed: the next one removes it
backup.lock                     held by who makes or removes backups
"""

import base64
import binascii
import errno
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec
import psycopg

from crafely.db.backup.stream import DamagedError
from crafely.keyring import Keyring, UnreadableError

FORMAT = 1
_MANIFEST = "manifest.json"
# Far more than thousands of tables would take.
_MAX_MANIFEST = 16 * 1024 * 1024
_READ = 256 * 1024
_NAME = re.compile(r"\d{8}T\d{6}-\d{3}Z")
_PARTIAL = re.compile(rf"\.({_NAME.pattern})\.partial")

State = Literal["complete", "unfinished", "damaged"]
# Told how many bytes more have been read.
Step = Callable[[int], None]


class BackupError(RuntimeError):
    """What stops a backup or what is done with one: one line, without any row's values."""


class BusyError(BackupError):
    """Somebody else makes or removes backups in the same folder."""


class TableCopy(msgspec.Struct, frozen=True, kw_only=True):
    """One table in a backup.

    ``bytes`` and ``checksum`` (stream.Tally) are of its rows as COPY gives them; the others of its file as it lies
    there. ``partitions``: the months that it had.
    """

    name: str
    columns: list[str]
    partitions: list[str]
    rows: int
    bytes: int
    checksum: str
    file: str
    file_bytes: int
    file_sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup holds. ``key`` is the id of the key that seals it, ``migrations`` their checksums by id.

    Its rows are those of one moment, just after ``started_at``. ``audit_head`` is the head of the audit trail's chain.
    """

    format: int = FORMAT
    id: str
    release: str
    server: str
    database: str
    started_at: datetime
    finished_at: datetime
    key: str | None
    migrations: dict[str, str]
    audit_head: str | None
    tables: list[TableCopy]

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(table.rows for table in self.tables)

    @property
    def bytes(self) -> int:
        """Of all files of tables."""
        return sum(table.file_bytes for table in self.tables)


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest's file: the seal is over the SHA-256 of the manifest."""

    manifest: Manifest
    seal: str


class Backup(msgspec.Struct, frozen=True):
    """One backup in a folder; ``manifest`` is None where it is not complete, ``problem`` says why it is damaged."""

    path: Path
    state: State
    manifest: Manifest | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name

    @property
    def started_at(self) -> datetime:
        """Its moment: of an unfinished or damaged one, what its name says."""
        if self.manifest:
            return self.manifest.started_at
        return datetime.strptime(self.name.strip(".")[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


class Making:
    """A backup that is being made in a hidden folder. Made by ``make``."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.id = uuid.uuid4().hex

    def label(self, file: str) -> str:
        """What a file is sealed as."""
        return label(self.id, file)

    def write(self, file: str, blocks: Iterable[bytes]) -> tuple[int, str]:
        """Writes a file, to the disk. Gives its bytes and SHA-256."""
        digest, size = hashlib.sha256(), 0
        with open(self.path / file, "xb", opener=private) as target:
            for block in blocks:
                target.write(block)
                digest.update(block)
                size += len(block)
            target.flush()
            os.fsync(target.fileno())
        return size, digest.hexdigest()

    def seal(self, manifest: Manifest, ring: Keyring) -> None:
        """Writes the manifest."""
        sealer = ring.sealer(label(manifest.id, _MANIFEST))
        seal = sealer.update(_digest(manifest)) + sealer.finish()
        self.write(_MANIFEST, [_encode(_Sealed(manifest, base64.b64encode(seal).decode()))])


@contextmanager
def make(place: Path, started_at: datetime) -> Iterator[Making]:
    """A new folder to write a backup to: after the block it has its name; if the block fails, it is gone."""
    name = started_at.strftime("%Y%m%dT%H%M%S-%f")[:-3] + "Z"
    path = place / f".{name}.partial"
    path.mkdir(mode=0o700)
    try:
        yield Making(path, name)
        sync(path)
        path.rename(place / name)
        sync(place)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


@contextmanager
def turn(place: Path) -> Iterator[None]:
    """Makes the folder where it is missing, and holds it: one at a time makes or removes backups in it.

    What others left unfinished is removed. Raises BusyError, BackupError.
    """
    with plain_errors(place):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(place / "backup.lock", "ab", opener=private) as file:
            try:
                # The kernel frees it when its holder is killed.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"{place}: another backup is being made in this folder") from None
            for left in place.glob(".*.partial"):
                if _PARTIAL.fullmatch(left.name):
                    shutil.rmtree(left, ignore_errors=True)
            yield


def every(place: Path) -> list[Backup]:
    """The backups in a folder, oldest first. Seals and files of tables are not opened. Raises BackupError.

    A folder that is missing has none.
    """
    with plain_errors(place):
        return [_look(place / name) for name in _names(place) if _NAME.fullmatch(name) or _PARTIAL.fullmatch(name)]


def newest(place: Path) -> Backup | None:
    """The newest complete backup in a folder; None where there is none. Raises BackupError."""
    with plain_errors(place):
        found = (_look(place / name) for name in reversed(_names(place)) if _NAME.fullmatch(name))
        return next((backup for backup in found if backup.state == "complete"), None)


def is_due(place: Path, hours: float) -> bool:
    """Whether the newest complete backup is older than so many hours, or there is none. Raises BackupError."""
    last = newest(place)
    return last is None or datetime.now(UTC) - last.started_at >= timedelta(hours=hours)


def find(place: Path | None, name: str | None) -> Path:
    """The folder of a backup: by its path, by its name in ``place``, or the newest complete one there.

    Raises BackupError.
    """
    if name is not None and (Path(name) / _MANIFEST).is_file():
        return Path(name)
    if place is None:
        raise BackupError(f"{name or 'no backup named'}: expected the folder of a backup, or CRAFELY_BACKUP_DIR")
    if name is not None:
        if _NAME.fullmatch(name) and (place / name).is_dir():
            return place / name
        raise BackupError(f"{place}: no such backup: {name}; crafely backup list shows them")
    last = newest(place)
    if last is None:
        raise BackupError(f"{place}: holds no complete backup")
    return last.path


def retain(place: Path, keep: int) -> list[str]:
    """Removes the oldest complete backups beyond so many; gives their names. Damaged ones stay for somebody to see."""
    complete = [backup for backup in every(place) if backup.state == "complete"]
    removed = []
    for backup in complete[: max(0, len(complete) - keep)]:
        with plain_errors(place):
            # Under its hidden name first: whoever is killed here leaves nothing that looks complete.
            hidden = place / f".{backup.name}.partial"
            backup.path.rename(hidden)
            shutil.rmtree(hidden)
        removed.append(backup.name)
    return removed


def read(path: Path, ring: Keyring) -> Manifest:
    """The manifest of a backup, whose seal has been opened. Raises BackupError."""
    with plain_errors(path):
        found = _read(path)
        manifest = found.manifest
        if manifest.key is not None and manifest.key not in ring.ids:
            raise BackupError(f"{path.name} is sealed with the key {manifest.key}: put it into CRAFELY_ENCRYPTION_KEYS")
        try:
            opener = ring.opener(label(manifest.id, _MANIFEST))
            opened = opener.update(base64.b64decode(found.seal, validate=True)) + opener.finish()
        except binascii.Error:
            opened = b""
        except UnreadableError as error:
            raise BackupError(f"{path.name}: {error}") from None
        if opened != _digest(manifest):
            raise BackupError(f"{path.name}: {_MANIFEST} is not as it was written")
        return manifest


def check(path: Path, manifest: Manifest, step: Step = lambda _: None) -> None:
    """Reads every file once, and compares it with what was written; ``step`` is told of bytes. Raises BackupError."""
    with plain_errors(path):
        there = {file.name for file in path.iterdir()}
        wanted = {_MANIFEST, *(table.file for table in manifest.tables)}
        if there != wanted:
            what = "is missing" if wanted - there else "does not belong there"
            raise BackupError(f"{path.name}: {min(wanted - there or there - wanted)} {what}")
        for table in manifest.tables:
            digest = hashlib.sha256()
            for block in blocks(path / table.file):
                digest.update(block)
                step(len(block))
            if digest.hexdigest() != table.file_sha256:
                raise BackupError(f"{path.name}: {table.file} is not as it was written")


def blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file."""
    with path.open("rb") as file:
        while block := file.read(_READ):
            yield block


def label(id: str, file: str) -> str:
    """What a file of a backup is sealed as: in no other backup, and under no other name, it can be opened."""
    return f"backup {id} {file}"


@contextmanager
def plain_errors(place: Path) -> Iterator[None]:
    """What the operating system, the database or a damaged file refuses becomes one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        reason = "the disk is full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else error.strerror
        raise BackupError(f"{place}: {reason}") from None
    except (DamagedError, UnreadableError) as error:
        raise BackupError(f"{place.name}: {error}") from None
    except psycopg.Error as error:
        # The server's detail is left out: it may hold a row's values.
        raise BackupError(
            f"the database refused: {error.diag.message_primary or ' '.join(str(error).split())}"
        ) from None


def _names(place: Path) -> list[str]:
    try:
        return sorted(path.name for path in place.iterdir())
    except FileNotFoundError:
        return []


def _look(path: Path) -> Backup:
    if path.name.startswith("."):
        return Backup(path, "unfinished")
    try:
        manifest = _read(path).manifest
        for table in manifest.tables:
            if (path / table.file).stat().st_size != table.file_bytes:
                return Backup(path, "damaged", problem=f"{table.file} is not as long as it was written")
    except FileNotFoundError as error:
        return Backup(path, "damaged", problem=f"{Path(error.filename).name} is missing")
    except (BackupError, OSError) as error:
        return Backup(path, "damaged", problem=str(error).removeprefix(f"{path.name}: "))
    return Backup(path, "complete", manifest)


def _read(path: Path) -> _Sealed:
    """The manifest's file, byte for byte as it was written. Its seal is not opened. Raises BackupError, OSError."""
    with (path / _MANIFEST).open("rb") as file:
        text = file.read(_MAX_MANIFEST)
    with suppress(msgspec.DecodeError):
        if msgspec.json.decode(text, type=_Format).manifest.format > FORMAT:
            raise BackupError(f"{path.name}: was made by a newer release, in a form that this one does not know")
        found = msgspec.json.decode(text, type=_Sealed)
        # What JSON would read past (a space, another spelling of the same) is a byte that is not as it was written.
        if _encode(found) == text and all(Path(table.file).name == table.file for table in found.manifest.tables):
            return found
    raise BackupError(f"{path.name}: {_MANIFEST} is not as it was written")


class _Form(msgspec.Struct):
    format: int


class _Format(msgspec.Struct):
    manifest: _Form


def _encode(found: _Sealed) -> bytes:
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _digest(manifest: Manifest) -> bytes:
    return hashlib.sha256(msgspec.json.encode(manifest)).digest()


def sync(folder: Path) -> None:
    """Sees that the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private(path: str, flags: int) -> int:
    """An opener of files that nobody else may read, and that no link leads away from."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
