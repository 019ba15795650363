"""How every benchmark ends after a user's mistake: one line, and exit code 2, as the command line does."""

import sys
from collections.abc import Callable
from pathlib import Path


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; an option that cannot work, or a file that cannot be read, is one line on standard error."""
    # Not above: processes that measure memory import the benchmark, and so this file.
    from askd_ray.errors import AskdError, one_line

    try:
        main()
    except (AskdError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
