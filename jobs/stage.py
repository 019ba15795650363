"""Runs a stage as a Ray job: `ray job submit -- python jobs/stage.py STAGE ...`. `askd submit STAGE` does that for you.

STAGE is any command of askd that runs on a cluster (prepare, label, tune, distill, export, evaluate, study, serve),
with its options.
"""

import sys

from askd_ray.cli import main

if __name__ == "__main__":
    main(sys.argv[1:])
