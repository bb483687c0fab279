"""Many callers, one statement in flight.

Who asks joins the batch that waits; when a connection is free, the batch goes to the server as one statement. Nobody
waits on a timer: with one caller every batch is one item and leaves at once, with many the time that a statement takes
is the time in which the next batch gathers. One round trip, one parse of the answer and one commit then serve all of
them, which is what a lookup or a small insert mostly costs.

Used for key lookups (sql/api_keys/lookup.sql) and for usage records (sql/usage/record.sql).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import psycopg

from crafely.db.channel import Channel
from crafely.db.query import Executor
from crafely.db.session import DatabaseUnavailableError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Runs one statement for a batch: as many answers as items, in their order.
Send = Callable[[Executor, list[Item]], Awaitable[Sequence[Answer]]]

# An item that is to blame for these is refused, and nothing of its batch is stored. (ValueError is the client's side:
# text that is not Unicode; the limit is that of a batch whose items are too large together.)
_REFUSED = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded, ValueError)
# What waits is divided among the connections that are free, so that the server works on one part while the answers to
# another are given out; but not into parts smaller than this.
_WORTH_IT = 24
# Seconds before a connection that could not be made is tried again: at first, and at most.
_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class QueueFullError(Exception):
    """More callers wait than may. Nothing was sent for this one: it may come back."""


class Coalescer(Generic[Item, Answer]):
    """Answers callers in batches, on connections of its own.

    One caller's failure or cancellation never reaches another: an item that the database refuses fails alone, after its
    batch has been halved until it stands by itself.
    """

    def __init__(
        self,
        send: Send[Item, Answer],
        channels: Sequence[Channel],
        *,
        batch: int,
        queue: int,
        seconds: float,
        repeatable: bool,
    ) -> None:
        """Takes the statement, the connections, the most items of a batch, the most callers that may wait, and the
        seconds for which one of them waits for a connection at most.

        ``repeatable``: whether a batch whose connection was lost may be sent again, which is so when it only reads.
        """
        self._send = send
        self._channels = channels
        self._batch = batch
        self._queue = queue
        self._seconds = seconds
        self._repeatable = repeatable
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        # One for each worker that has nothing to do; done means that it has been told to look.
        self._idle: list[asyncio.Future[None]] = []
        self._workers: list[asyncio.Task[None]] = []
        # Connections that have nothing to do.
        self._free = len(channels)
        self._closing = False
        # Who waited at the front when it was last looked, and how many did.
        self._seen: tuple[object, int] = (None, 0)
        self._looking: asyncio.TimerHandle | None = None
        # How many items and batches were sent, for the metrics.
        self.items = 0
        self.batches = 0

    @property
    def waiting(self) -> int:
        """Callers whose item has not been sent yet."""
        return len(self._waiting)

    async def open(self) -> None:
        """Connects, and starts to work. Raises what connecting raises."""
        for channel in self._channels:
            await channel.open()
        self._loop = asyncio.get_running_loop()
        self._workers = [asyncio.create_task(self._work(channel)) for channel in self._channels]
        self._look()

    async def close(self) -> None:
        """Answers who waits, then gives the connections back. Nobody may come any more."""
        self._closing, self._queue = True, 0
        for idle in self._idle:
            idle.set_result(None)
        self._idle = []
        await asyncio.gather(*self._workers)
        if self._looking is not None:
            self._looking.cancel()
        for channel in self._channels:
            await channel.close()

    def ask(self, item: Item) -> "asyncio.Future[Answer]":
        """The answer to an item, to be awaited at once.

        Raises QueueFullError. The future raises DatabaseUnavailableError, or what the database has against this item.
        """
        waiting = self._waiting
        if len(waiting) >= self._queue:
            raise QueueFullError(f"{self._queue} wait already")
        future: asyncio.Future[Answer] = self._loop.create_future()
        waiting.append((item, future))
        if self._idle:
            self._idle.pop().set_result(None)
        return future

    def _look(self) -> None:
        """Tells those who have waited too long: half of the time ago they waited, and nobody has been sent since."""
        front, count = self._seen
        if self._waiting and self._waiting[0] is front:
            late, self._waiting = self._waiting[:count], self._waiting[count:]
            self._fail(late, DatabaseUnavailableError("no connection became free"))
        self._seen = (self._waiting[0] if self._waiting else None, len(self._waiting))
        self._looking = self._loop.call_later(self._seconds / 2, self._look)

    async def _work(self, channel: Channel) -> None:
        pause = 0.0
        while True:
            while not self._waiting:
                if self._closing:
                    return
                idle = self._loop.create_future()
                self._idle.append(idle)
                await idle
            if channel.lost:
                try:
                    await channel.open()
                    pause = 0.0
                except Exception as error:
                    # Whatever it is: a worker that ends here would let callers wait for ever.
                    log.warning("no connection as %s: %s", channel.role, _line(error))
                    if all(other.lost for other in self._channels):
                        waiting, self._waiting = self._waiting, []
                        self._fail(waiting, DatabaseUnavailableError(_line(error)))
                    elif self._idle:
                        # What this worker was woken for is another's now.
                        self._idle.pop().set_result(None)
                    pause = min(max(2 * pause, _PAUSE), _LONGEST_PAUSE)
                    await asyncio.sleep(pause)
                    continue
            size = min(self._batch, max(-(-len(self._waiting) // self._free), _WORTH_IT))
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            # Whoever has gone needs no answer.
            batch = [asked for asked in batch if not asked[1].done()]
            if batch:
                self._free -= 1
                try:
                    await self._answer(channel, batch, self._repeatable)
                finally:
                    self._free += 1

    async def _answer(
        self, channel: Channel, batch: "list[tuple[Item, asyncio.Future[Answer]]]", repeatable: bool
    ) -> None:
        self.items += len(batch)
        self.batches += 1
        try:
            answers = await self._send(channel, [item for item, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} were asked, and {len(answers)} answered")  # noqa: TRY301 - told below
        except _REFUSED as error:
            if len(batch) == 1:
                self._fail(batch, error)
                return
            # One of them is to blame: the halves go alone, and so on.
            middle = len(batch) // 2
            await self._answer(channel, batch[:middle], repeatable)
            await self._answer(channel, batch[middle:], repeatable)
        except Exception as error:
            if channel.lost and repeatable:
                # To the front, for a new connection; lost twice, they are told.
                try:
                    await channel.open()
                except Exception as failed:
                    self._fail(batch, DatabaseUnavailableError(_line(failed)))
                    return
                await self._answer(channel, batch, False)
                return
            self._fail(batch, error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    @staticmethod
    def _fail(batch: "list[tuple[Item, asyncio.Future[Answer]]]", error: Exception) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
