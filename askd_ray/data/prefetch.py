"""Making the next batches while the current one is computed with."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from askd_ray.torch_setup import use_one_thread_here

T = TypeVar("T")


def prefetch(tasks: Iterable[Callable[[], T]], ahead: int, threads: int = 1) -> Iterator[T]:
    """Yield what each of ``tasks`` returns, in their order; ``threads`` threads do up to ``ahead`` of them in advance.

    One more thread takes the jobs from ``tasks``. An exception comes out where its item would. The threads end when the
    jobs do, or when the iterator is closed. Torch computes with one thread in each of them, so that how many cores
    there are changes no bit of what comes out.
    """
    ready: queue.Queue[Future[T] | None] = queue.Queue(ahead)
    closed = threading.Event()
    pool = ThreadPoolExecutor(threads, "prefetch", use_one_thread_here, (torch.get_num_threads(),))

    def put(item: Future[T] | None) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def submit() -> None:
        try:
            for task in tasks:
                if not put(pool.submit(task)):
                    return
            put(None)
        except BaseException as error:  # whatever it is, it belongs to whoever asks for the item
            failed: Future[T] = Future()
            failed.set_exception(error)
            put(failed)

    threading.Thread(target=submit, name="prefetch", daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            yield item.result()
    finally:
        closed.set()
        pool.shutdown(wait=False, cancel_futures=True)
