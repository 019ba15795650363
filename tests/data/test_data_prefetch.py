import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from askd_ray.data.prefetch import prefetch


def working(n: int) -> list[threading.Thread]:
    """Wait until at most ``n`` threads of prefetch are left; returns them."""
    deadline = time.monotonic() + 5.0
    while len(found := [t for t in threading.enumerate() if t.name.startswith("prefetch")]) > n:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("threads", [1, 4])
def test_items_keep_the_order(threads: int):
    def job(n: int) -> Callable[[], int]:
        return lambda: (time.sleep(0.02 * (n % 3 == 0)), n)[1]

    assert list(prefetch((job(n) for n in range(40)), ahead=8, threads=threads)) == list(range(40))
    assert not working(0)


def test_jobs_run_in_parallel_within_the_prefetch_limit():
    begun: list[int] = []
    together = threading.Barrier(3)

    def job(n: int) -> Callable[[], int]:
        def make() -> int:
            begun.append(n)
            if n < 3:
                together.wait(5.0)
            return n

        return make

    items = prefetch((job(n) for n in itertools.count()), ahead=4, threads=3)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.2)
    assert max(begun) <= 3 + 4  # four wait, and one more finds no place
    items.close()
    assert not working(0)


@pytest.mark.parametrize("where", ["in a job", "between jobs"])
def test_error_is_raised_in_order(where: str):
    def fail() -> int:
        raise ValueError("a damaged clip")

    def jobs() -> Iterator[Callable[[], int]]:
        yield lambda: 0
        yield lambda: 1
        yield fail if where == "in a job" else [fail() for _ in range(1)].pop
        yield lambda: 3

    items = prefetch(jobs(), ahead=8, threads=2)
    assert (next(items), next(items)) == (0, 1)
    with pytest.raises(ValueError, match="a damaged clip"):
        next(items)
    assert not working(0)


def test_prefetch_threads_use_one_torch_thread_each():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert set(prefetch([torch.get_num_threads] * 20, ahead=4, threads=4)) == {1}
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (3, [3])
    finally:
        torch.set_num_threads(before)
