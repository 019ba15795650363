"""Distil the student, as a Ray job of `ray job submit`; `askd submit` does the same with one command."""

import sys

from askd_ray.cli import main

if __name__ == "__main__":
    main(["distill", *sys.argv[1:]])
