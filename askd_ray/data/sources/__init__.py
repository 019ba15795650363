"""Read utterances from data sources: each layout's reader yields records, which become rows (docs/data.md)."""

from askd_ray.data.sources.read import Survey, read_rows, survey
from askd_ray.data.sources.row import SourceRow

__all__ = ["SourceRow", "Survey", "read_rows", "survey"]
