import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.serve.scheduler import Scheduler


class Work:
    """Records its batches; the first batch waits at the gate, so that a queue forms."""

    def __init__(self):
        self.batches: list[tuple[str, list[Any]]] = []
        self.gate = threading.Event()

    def __call__(self, key: str, items: Sequence[Any]) -> list[str]:
        self.batches.append((key, list(items)))
        assert self.gate.wait(10)
        if any(isinstance(item, str) and item == "bad" for item in items):
            raise ValueError("bad")
        return [f"{key}:{item}" for item in items]


def run(
    requests: Sequence[tuple[Any, str, float, str]], batch_s: float = 10.0, cancel: Sequence[int] = ()
) -> tuple[Work, list]:
    """Let a queue form behind a first item; return the later batches and the result of each item."""
    work = Work()

    async def scenario() -> list[Any]:
        scheduler = Scheduler[Any, str, str](work, batch_s)
        first = asyncio.create_task(scheduler.run("first", "first", 1.0, "first"))
        while not work.batches:
            await asyncio.sleep(0.001)
        tasks = [asyncio.create_task(scheduler.run(*request)) for request in requests]
        await asyncio.sleep(0)
        for i in cancel:
            tasks[i].cancel()
        await asyncio.sleep(0)
        work.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await first
        assert scheduler.waiting_s == 0.0
        return found

    return work, asyncio.run(asyncio.wait_for(scenario(), 30))


def test_matching_items_share_a_batch():
    work, found = run([("a", "x", 4.0, "A"), ("b", "y", 4.0, "B"), ("c", "x", 4.0, "C"), ("d", "x", 4.0, "D")])
    assert found == ["x:a", "y:b", "x:c", "x:d"]
    assert work.batches[1:] == [("x", ["a", "c"]), ("y", ["b"]), ("x", ["d"])]


def test_short_clip_does_not_wait_for_a_long_file():
    chunks = [(f"long{i}", "k", 20.0, "file") for i in range(5)]
    work, _ = run([*chunks, ("clip", "k", 3.0, "client")], batch_s=20.0)
    order = [items[0] for _, items in work.batches[1:]]
    assert order == ["clip", *(f"long{i}" for i in range(5))]


def test_long_file_is_not_starved():
    """The chunk of a long file is not starved by new clips: the virtual clock advances."""
    requests = [("long", "k", 20.0, "file"), *((f"clip{i}", "k", 3.0, "one client") for i in range(20))]
    work, _ = run(requests, batch_s=3.0)
    order = [items[0] for _, items in work.batches[1:]]
    assert order.index("long") <= 7


def test_short_items_do_not_share_a_batch_with_long_ones():
    requests = [(seconds, "x", seconds, f"client {seconds}") for seconds in (1.0, 12.0, 2.0, 7.0, 2.5)]
    work, _ = run(requests, batch_s=60.0)
    assert [items for _, items in work.batches[1:]] == [[1.0, 2.0], [2.5], [7.0, 12.0]]


def test_failing_item_fails_alone():
    work, found = run([("a", "x", 1.0, "A"), ("bad", "x", 1.0, "B"), ("c", "x", 1.0, "C")])
    assert (found[0], found[2]) == ("x:a", "x:c")
    assert isinstance(found[1], ValueError)
    assert work.batches[1] == ("x", ["a", "bad", "c"])


def test_items_of_any_type():
    """Comparing arrays raises: a queue that compared its items stopped forever."""
    items = [np.zeros(3), np.zeros(3), np.ones(2)]
    work, found = run([(item, "x", 1.0, "A") for item in items])
    assert found == [f"x:{item}" for item in items]
    assert [len(batch) for _, batch in work.batches] == [1, 3]


def test_cancelled_item_leaves_the_queue():
    work, found = run([("a", "x", 1.0, "A"), ("b", "y", 1.0, "B")], cancel=[0])
    assert isinstance(found[0], asyncio.CancelledError) and found[1] == "y:b"
    assert [items for _, items in work.batches] == [["first"], ["b"]]


def test_free_workers_share_the_queue():
    """Two workers decode two clips concurrently instead of in one batch; later clips wait for either worker."""
    busy, max_busy, batches = 0, 0, list[int]()
    both = threading.Barrier(2, timeout=10)

    def work(key: str, items: Sequence[Any]) -> list[Any]:
        nonlocal busy, max_busy
        busy += 1
        max_busy = max(max_busy, busy)
        batches.append(len(items))
        both.wait()
        busy -= 1
        return list(items)

    async def scenario() -> list[Any]:
        scheduler = Scheduler[Any, str, Any](work, 10.0, workers=2)
        requests = (scheduler.run(i, "key", 1.0, f"client {i}") for i in range(4))
        return await asyncio.gather(*requests)

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == [0, 1, 2, 3]
    assert (max_busy, batches) == (2, [2, 2])


@settings(max_examples=50, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from("xy"), st.floats(0.1, 20.0), st.sampled_from("ABC")), max_size=20
    )
)
def test_every_item_gets_the_right_result(requests: list[tuple[int, str, float, str]]):
    work, found = run(requests)
    assert found == [f"{key}:{item}" for item, key, _, _ in requests]
    assert sum(len(items) for _, items in work.batches) == len(requests) + 1
