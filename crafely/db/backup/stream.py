"""The rows of one table on their way: counted and summed up, compressed, sealed in chunks; and back.

Rows are lines of COPY's text format, which is the same on every supported server and holds no line end within a row.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator

from crafely.keyring import Keyring

# The most that is unpacked at once: a few bytes may stand for very many.
CHUNK = 1024 * 1024
# A tenth of the size; more effort makes it little smaller, and several times slower.
_LEVEL = 3
# gzip's own form, so that zcat reads a backup that is not sealed.
_GZIP = 31
_MODULUS = 2**256


class DamagedError(ValueError):
    """What was read is not what was written. The message says how, in a few words."""


class Tally:
    """How many rows came by, how many bytes they took, and a sum of their hashes, whatever their order."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self._sum = 0

    @property
    def checksum(self) -> str:
        """The sum of the BLAKE2b hashes of all rows, modulo 2^256, in hexadecimal."""
        return f"{self._sum:064x}"

    def count(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Gives the blocks as they come, and takes their lines into account."""
        for lines in _lines(blocks):
            for line in lines:
                digest = hashlib.blake2b(line, digest_size=32).digest()
                self._sum = (self._sum + int.from_bytes(digest)) % _MODULUS
            self.rows += len(lines)
            block = b"".join(lines)
            self.bytes += len(block)
            yield block


def _lines(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Whole lines, each with its end. The server sends a row a block, which the protocol does not promise."""
    rest = b""
    for block in blocks:
        text = rest + block
        if text and text.find(b"\n") == len(text) - 1:
            # One row: how the server sends them.
            rest = b""
            yield [text]
            continue
        *lines, rest = text.split(b"\n")
        yield [line + b"\n" for line in lines]
    if rest:
        raise DamagedError("its last row has no end")


def pack(blocks: Iterable[bytes], ring: Keyring, label: str) -> Iterator[bytes]:
    """The bytes of a file: compressed, and sealed as what the label says, unless the ring stores in clear."""
    sealer = ring.sealer(label)
    for block in _compress(blocks):
        yield sealer.update(block)
    yield sealer.finish()


def unpack(file: Iterable[bytes], ring: Keyring, label: str) -> Iterator[bytes]:
    """What was packed. Raises DamagedError where it is not what was written, UnreadableError without its key.

    Nothing of it may be believed before its end has come.
    """
    opener = ring.opener(label)

    def opened() -> Iterator[bytes]:
        for block in file:
            yield opener.update(block)
        yield opener.finish()

    return _decompress(opened())


def _compress(blocks: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    for block in blocks:
        yield packer.compress(block)
    yield packer.flush()


def _decompress(blocks: Iterable[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        for block in blocks:
            rest = block
            while rest:
                yield unpacker.decompress(rest, CHUNK)
                rest = unpacker.unconsumed_tail
            if unpacker.unused_data:
                raise DamagedError("something follows its end")
        yield unpacker.flush()
    except zlib.error as error:
        raise DamagedError(f"it cannot be unpacked ({error})") from None
    if not unpacker.eof:
        raise DamagedError("its end is missing")
