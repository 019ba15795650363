"""Making the next batches while the current one is computed with."""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], ahead: int) -> Iterator[T]:
    """Yield ``items``, which a thread makes up to ``ahead`` in advance; an exception comes out where its item would.

    The thread ends when the items do, or when the iterator is closed.
    """
    ready: queue.Queue[T | _End] = queue.Queue(ahead)
    closed = threading.Event()

    def put(item: T | _End) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_End(None))
        except BaseException as error:  # whatever it is, it belongs to whoever asks for the item
            put(_End(error))

    threading.Thread(target=make, name="prefetch", daemon=True).start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()


@dataclass(frozen=True)
class _End:
    """What comes after the last item: the error that ended them, if one did."""

    error: BaseException | None
