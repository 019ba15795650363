"""Search the schedule, as a Ray job; jobs/run_all.sh shows how."""

import sys

from askd_ray.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
