"""Make the next batches in threads while the current one is used."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from askd_ray.torch_setup import use_one_thread_here

T = TypeVar("T")


def prefetch(tasks: Iterable[Callable[[], T]], ahead: int, threads: int = 1) -> Iterator[T]:
    """Call each of ``tasks`` and yield the results in order; ``threads`` threads work up to ``ahead`` items in advance.

    Another thread iterates over ``tasks``. A task's exception is raised in place of its result. The threads end when
    the tasks do, or when the iterator is closed. Torch uses one thread in each of them, so that the results do not
    depend on the number of cores.
    """
    ready: queue.Queue[Future[T] | None] = queue.Queue(ahead)
    closed = threading.Event()
    pool = ThreadPoolExecutor(threads, "prefetch", use_one_thread_here, (torch.get_num_threads(),))
    # Until all threads have started, a thread that starts elsewhere could take over their number of threads.
    started = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(started.wait)
    started.wait()

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
        except BaseException as error:  # re-raised in the thread that takes the item
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
