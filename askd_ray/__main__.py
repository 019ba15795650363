"""``python -m askd_ray``: the same as ``askd``, where the script is not on the path (in a Ray job)."""

from askd_ray.cli import main

if __name__ == "__main__":
    main()
