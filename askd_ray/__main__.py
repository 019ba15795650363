"""``python -m askd_ray``: same as ``askd``, for places without the script on the path (a Ray job)."""

from askd_ray.cli import main

if __name__ == "__main__":
    main()
