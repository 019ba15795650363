"""Serve a bundle until the job is stopped, as a Ray job of `ray job submit`."""

import sys

from askd_ray.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
