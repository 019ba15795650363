"""Who gets the engine next: work of many requests, shared out fairly and batched where it fits together."""

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    """A queue before one engine that does one batch at a time.

    Start-time fair queueing (Goyal, Vin and Cheng 1996) by audio seconds: an owner's next item begins where its last
    one ended on a clock that the engine's work moves on, and the item that would end first is next. So a clip of 3 s
    waits for no more than what is being decoded, however many stretches of a long file were there before it, and the
    long file goes on between the clips.

    Nothing waits for a batch to fill: what gathered while the engine was busy and has the same ``key`` goes in one
    call, up to ``batch_s`` seconds. ``work(key, items)`` is called in a thread of its own and returns a result for
    each; where it raises, each item is tried alone, so that a bad one fails alone.
    """

    def __init__(self, work: Callable[[Key, Sequence[Item]], Sequence[Result]], batch_s: float):
        self._work, self._batch_s = work, batch_s
        self._waiting: list[_Waiting[Item, Key, Result]] = []
        self._now = 0.0
        self._finish: dict[str, float] = {}  # of each owner's last item
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._running: asyncio.Task[None] | None = None

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
        if self._running is None:
            self._running = asyncio.create_task(self._go_on())
        return await future

    async def _go_on(self) -> None:
        """Work until the line is empty."""
        loop = asyncio.get_running_loop()
        while batch := self._next():
            self._now = max(self._now, batch[0].start)
            results = await loop.run_in_executor(self._thread, self._results, batch)
            for waiting, result in zip(batch, results, strict=True):
                with contextlib.suppress(asyncio.InvalidStateError):  # cancelled meanwhile
                    if isinstance(result, Exception):
                        waiting.future.set_exception(result)
                    else:
                        waiting.future.set_result(result)
        self._running, self._finish = None, {}

    def _next(self) -> list[_Waiting[Item, Key, Result]]:
        """Take what is next out of the line, with what fits to it."""
        self._waiting = sorted((w for w in self._waiting if not w.future.done()), key=lambda w: w.finish)
        batch: list[_Waiting[Item, Key, Result]] = []
        for waiting in self._waiting:
            seconds = sum(its.seconds for its in batch) + waiting.seconds
            if not batch or (waiting.key == batch[0].key and seconds <= self._batch_s):
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
