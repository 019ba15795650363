import threading
import time
from collections.abc import Iterator

import pytest

from askd_ray.data.task_runner import LocalRunner, map_in_order


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_keep_the_order_of_the_items(threads: int):
    def late(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    expected = [n * n for n in range(30)]
    assert list(map_in_order(late, range(30), threads)) == expected
    assert list(LocalRunner(threads).map(late, range(30), local_threads=threads)) == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_few_items_are_read_ahead(threads: int):
    n_read = 0

    def items() -> Iterator[int]:
        nonlocal n_read
        for number in range(1000):
            n_read += 1
            yield number

    results = map_in_order(str, items(), threads, ahead=2)
    assert [next(results) for _ in range(10)] == [str(n) for n in range(10)]
    assert n_read <= 10 + 2 * threads


def test_one_thread_is_this_thread():
    (name,) = map_in_order(lambda _: threading.current_thread().name, [0], 1)
    assert name == threading.current_thread().name


def test_error_is_that_of_the_first_item():
    def failing(number: int) -> int:
        if number > 2:
            raise ValueError(str(number))
        return number

    results = map_in_order(failing, range(20), 3)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^3$"):
        next(results)
