"""Who gets the engine next: work of many requests, shared out fairly and batched where it fits together."""

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


@dataclass(eq=False)  # two are never the same, whatever they hold
class _Waiting(Generic[Item, Key, Result]):
    item: Item
    key: Key
    seconds: float
    start: float
    finish: float
    future: "asyncio.Future[Result]" = field(repr=False)


class Scheduler(Generic[Item, Key, Result]):
    """A queue before an engine that does ``workers`` batches at a time.

    Start-time fair queueing (Goyal, Vin and Cheng 1996) by audio seconds: an owner's next item begins where its last
    one ended on a clock that the engine's work moves on, and the item that would end first is next. So a clip of 3 s
    waits for no more than what is being decoded, however many stretches of a long file were there before it, and the
    long file goes on between the clips.

    Nothing waits for a batch to fill: what gathered while the engine was busy and has the same ``key`` goes in one
    call, up to ``batch_s`` seconds. ``work(key, items)`` is called in threads of its own and returns a result for
    each; where it raises, each item is tried alone, so that a bad one fails alone.
    """

    def __init__(self, work: Callable[[Key, Sequence[Item]], Sequence[Result]], batch_s: float, workers: int = 1):
        self._work, self._batch_s, self._workers = work, batch_s, workers
        self._waiting: list[_Waiting[Item, Key, Result]] = []
        self._now = 0.0
        self._finish: dict[str, float] = {}  # of each owner's last item
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="engine")
        self._running = 0

    @property
    def waiting_s(self) -> float:
        """The audio seconds in line."""
        return sum(its.seconds for its in self._waiting)

    async def run(self, item: Item, key: Key, seconds: float, owner: str) -> Result:
        """Return the result for an item; whoever is cancelled leaves the line.

        Raises what ``work`` raises for this item.
        """
        start = max(self._now, self._finish.get(owner, 0.0))
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(item, key, seconds, start, start + seconds, future)
        self._finish[owner] = waiting.finish
        self._waiting.append(waiting)
        asyncio.get_running_loop().call_soon(self._begin)  # not now: what comes in the same moment goes with it
        return await future

    def _begin(self) -> None:
        """Give the free workers what is next."""
        loop = asyncio.get_running_loop()
        while self._running < self._workers and (batch := self._next()):
            self._running += 1
            self._now = max(self._now, batch[0].start)
            working = loop.run_in_executor(self._threads, self._results, batch)
            working.add_done_callback(partial(self._end, batch))

    def _end(
        self, batch: Sequence[_Waiting[Item, Key, Result]], done: "asyncio.Future[Sequence[Result | Exception]]"
    ) -> None:
        for waiting, result in zip(batch, done.result(), strict=True):
            with contextlib.suppress(asyncio.InvalidStateError):  # cancelled meanwhile
                if isinstance(result, Exception):
                    waiting.future.set_exception(result)
                else:
                    waiting.future.set_result(result)
        self._running -= 1
        self._begin()
        if not self._running:
            self._finish = {}

    def _next(self) -> list[_Waiting[Item, Key, Result]]:
        """Take what is next out of the line, with what fits to it; the free workers share the line."""
        self._waiting = sorted((w for w in self._waiting if not w.future.done()), key=lambda w: w.finish)
        most = -(-len(self._waiting) // (self._workers - self._running))
        batch: list[_Waiting[Item, Key, Result]] = []
        for waiting in self._waiting:
            seconds = sum(its.seconds for its in batch) + waiting.seconds
            fits = batch and waiting.key == batch[0].key and seconds <= self._batch_s
            if len(batch) < most and (not batch or fits):
                batch.append(waiting)
        self._waiting = [w for w in self._waiting if w not in batch]
        return batch

    def _results(self, batch: Sequence[_Waiting[Item, Key, Result]]) -> Sequence[Result | Exception]:
        try:
            return self._work(batch[0].key, [its.item for its in batch])
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [result for its in batch for result in self._results([its])]
