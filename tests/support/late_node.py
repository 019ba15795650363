"""A script: labels and distils a recipe on a cluster that has no CPU at first; a node with CPUs joins later.

A process of its own, since that of the tests is connected to another cluster.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from askd_ray.config.load import load_recipe
from askd_ray.ray_cluster import disconnect
from askd_ray.targets.ray_label import label
from askd_ray.train.ray_trainer import distill

_LATE_S = 10.0


def main(file: str) -> None:
    recipe = load_recipe(file)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    os.environ["RAY_ADDRESS"] = cluster.address
    nodes: list[subprocess.Popen[bytes]] = []

    def join_late() -> None:  # Cluster.add_node needs the main thread, which runs the stage
        while not ray.is_initialized():
            time.sleep(0.1)
        assert "CPU" not in ray.cluster_resources()
        time.sleep(_LATE_S)
        command = [str(Path(sys.executable).with_name("ray")), "start", "--address", cluster.address, "--block"]
        nodes.append(subprocess.Popen([*command, "--num-cpus=4"], stdout=subprocess.DEVNULL))

    joining = threading.Thread(target=join_late)
    joining.start()
    try:
        assert label(recipe)["labelled"] == 14
        assert distill(recipe)["steps"] > 0
        joining.join()
        disconnect()
    finally:
        for node in nodes:
            node.terminate()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
