"""A script: labels and distils a recipe on a cluster of nodes with two CPUs, of which one dies each time.

There is a node for every two workers, and at first one more for `askd label`, which dies. A recipe with ``min_count``
of workers is only distilled, and no other node takes the place of the one that dies.

A process of its own, since that of the tests is connected to another cluster.
"""

import os
import sys
from functools import partial

from ray.cluster_utils import Cluster
from ray_faults import ray_processes, when

from askd_ray.config.load import load_recipe
from askd_ray.ray_cluster import disconnect
from askd_ray.runs import Run
from askd_ray.targets.ray_label import label
from askd_ray.train.ray_trainer import distill


def kill_node(cluster: Cluster, name: str) -> None:
    """Kill the node on which a Ray worker of this name runs."""
    above = {process.pid for process in ray_processes(name)[0].parents()}
    (node,) = (n for n in cluster.worker_nodes if n.all_processes["raylet"][0].process.pid in above)
    cluster.remove_node(node, allow_graceful=False)


def main(file: str) -> None:
    recipe = load_recipe(file)
    run = Run(recipe)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})  # the work is done by the others
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        for _ in range(max(2, recipe.train.workers.count // 2)):
            cluster.add_node(num_cpus=2)
        if recipe.train.workers.min_count is None:
            with when(lambda: len(run.labels.files("train-*")) >= 2, partial(kill_node, cluster, "_TeacherActor")):
                label(recipe)
            cluster.add_node(num_cpus=2)
        checkpoints = run.distill / "checkpoints"
        with when(lambda: any(checkpoints.glob("step-*")), partial(kill_node, cluster, "RayTrainWorker")):
            distill(recipe)
        disconnect()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
