"""Read utterances from data sources: each layout's reader yields records, which become rows (docs/data.md)."""

from askd_ray.data.sources.parts import SourcePart, source_parts
from askd_ray.data.sources.read import SplitNames, Survey, read_rows, survey
from askd_ray.data.sources.row import SourceRow

__all__ = ["SourcePart", "SourceRow", "SplitNames", "Survey", "read_rows", "source_parts", "survey"]
