"""Search the schedule, as a Ray job of `ray job submit`; `askd submit` does all that for you."""

import sys

from askd_ray.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
