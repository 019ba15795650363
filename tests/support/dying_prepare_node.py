"""A script: prepares a recipe on a cluster of two working nodes, of which one dies in the middle.

A process of its own, since that of the tests is connected to another cluster.
"""

import os
import sys
from functools import partial

from ray.cluster_utils import Cluster
from ray_faults import when

from askd_ray import stages
from askd_ray.config.load import load_recipe
from askd_ray.ray_cluster import disconnect
from askd_ray.runs import Run


def main(file: str) -> None:
    recipe = load_recipe(file)
    parts = Run(recipe).path / "parts"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})  # the work is done by the others
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        kill = partial(cluster.remove_node, nodes[0], allow_graceful=False)
        with when(lambda: len(list(parts.glob("*.parquet"))) >= 3, kill):
            stages.prepare(recipe)
        disconnect()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
