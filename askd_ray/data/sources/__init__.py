"""Where utterances come from: readers yield records, all alike, and one place turns them into rows (docs/data.md)."""

from askd_ray.data.sources.read import Survey, read_rows, survey
from askd_ray.data.sources.row import SourceRow

__all__ = ["SourceRow", "Survey", "read_rows", "survey"]
