"""A fair queue in front of the engine: it orders the work of many requests and batches what may share a call."""

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


_MAX_RATIO = 2.0  # of the lengths of two items in a batch


@dataclass(eq=False)  # compared by identity
class _QueuedItem(Generic[Item, Key, Result]):
    item: Item
    key: Key
    seconds: float
    start: float
    finish: float
    future: "asyncio.Future[Result]" = field(repr=False)


class Scheduler(Generic[Item, Key, Result]):
    """A queue in front of an engine that runs ``workers`` batches at a time.

    Start-time fair queueing (Goyal, Vin and Cheng 1996) by audio seconds: on a virtual clock that the engine's work
    advances, an owner's next item starts where its last item finished, and the item that would finish first is next.
    So a clip of 3 s waits only for the batch in progress, however many chunks of a long file came before it, and the
    long file proceeds between the clips.

    No item waits for a batch to fill: items with the same ``key`` that arrived while the engine was busy share a call
    of up to ``batch_s`` seconds, and none is more than twice as long as another one, whose result would wait for it.
    ``work(key, items)`` is called in worker threads and returns one result per item.
    Where it raises, each item is tried alone, so that only the bad item fails.
    """

    def __init__(self, work: Callable[[Key, Sequence[Item]], Sequence[Result]], batch_s: float, workers: int = 1):
        self._work, self._batch_s, self._workers = work, batch_s, workers
        self._queue: list[_QueuedItem[Item, Key, Result]] = []
        self._virtual_time_s = 0.0
        self._finish: dict[str, float] = {}  # virtual finish time of each owner's last item
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="engine")
        self._running = 0

    @property
    def waiting_s(self) -> float:
        """The audio seconds in the queue."""
        return sum(queued.seconds for queued in self._queue)

    async def run(self, item: Item, key: Key, seconds: float, owner: str) -> Result:
        """Return the result for an item; a cancelled item leaves the queue.

        Raises what ``work`` raises for this item.
        """
        start = max(self._virtual_time_s, self._finish.get(owner, 0.0))
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        queued = _QueuedItem(item, key, seconds, start, start + seconds, future)
        self._finish[owner] = queued.finish
        self._queue.append(queued)
        asyncio.get_running_loop().call_soon(self._begin)  # later: items that arrive together can share a batch
        return await future

    def _begin(self) -> None:
        """Start the next batches on the free workers."""
        loop = asyncio.get_running_loop()
        while self._running < self._workers and (batch := self._next()):
            self._running += 1
            self._virtual_time_s = max(self._virtual_time_s, batch[0].start)
            working = loop.run_in_executor(self._threads, self._results, batch)
            working.add_done_callback(partial(self._end, batch))

    def _end(
        self, batch: Sequence[_QueuedItem[Item, Key, Result]], done: "asyncio.Future[Sequence[Result | Exception]]"
    ) -> None:
        for queued, result in zip(batch, done.result(), strict=True):
            with contextlib.suppress(asyncio.InvalidStateError):  # cancelled meanwhile
                if isinstance(result, Exception):
                    queued.future.set_exception(result)
                else:
                    queued.future.set_result(result)
        self._running -= 1
        self._begin()
        if not self._running:
            self._finish = {}

    def _next(self) -> list[_QueuedItem[Item, Key, Result]]:
        """Take the next batch out of the queue; the free workers divide the queue among them."""
        self._queue = sorted((queued for queued in self._queue if not queued.future.done()), key=lambda q: q.finish)
        max_items = -(-len(self._queue) // (self._workers - self._running))
        batch: list[_QueuedItem[Item, Key, Result]] = []
        for queued in self._queue:
            if not batch or (len(batch) < max_items and self._fits(batch, queued)):
                batch.append(queued)
        self._queue = [queued for queued in self._queue if queued not in batch]
        return batch

    def _fits(self, batch: Sequence[_QueuedItem[Item, Key, Result]], queued: _QueuedItem[Item, Key, Result]) -> bool:
        seconds = [queued.seconds, *(item.seconds for item in batch)]
        alike = max(seconds) <= _MAX_RATIO * min(seconds)
        return queued.key == batch[0].key and alike and sum(seconds) <= self._batch_s

    def _results(self, batch: Sequence[_QueuedItem[Item, Key, Result]]) -> Sequence[Result | Exception]:
        try:
            return self._work(batch[0].key, [queued.item for queued in batch])
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [result for queued in batch for result in self._results([queued])]
