import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray.data

from askd_ray.data.ray_stream import configure


def test_waiting_executor_leaves_the_processor(ray_session: None):
    """Ray Data's loop spins while output waits; then the thread that trains waits for the interpreter."""

    def megabytes(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for _ in range(8):
            yield {"x": np.zeros(1 << 20, np.uint8)}

    configure()
    context = ray.data.DataContext.get_current()
    limit, context.execution_options.resource_limits = (
        context.execution_options.resource_limits,
        context.execution_options.resource_limits.copy(object_store_memory=100e6),
    )
    try:
        items = ray.data.from_items([{"task": i} for i in range(100)], override_num_blocks=100)
        rows = iter(items.flat_map(megabytes, num_cpus=0.5, concurrency=1).iter_rows())
        next(rows)
        time.sleep(3.0)  # until output waits
        cpu_s, wall_s = time.process_time(), time.monotonic()
        time.sleep(3.0)
        assert time.process_time() - cpu_s < 0.3 * (time.monotonic() - wall_s)  # about 1.0 for a loop that spins
    finally:
        context.execution_options.resource_limits = limit
