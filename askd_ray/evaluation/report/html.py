"""A report as one HTML page that loads nothing from outside."""

import base64
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from askd_ray.evaluation.report.document import Audio, Document, TableBlock


def to_html(document: Document) -> str:
    """Return the document as a page. All texts are escaped, since they come from data and models."""
    environment = Environment(
        loader=PackageLoader("askd_ray.evaluation.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html")
    return page.render(document=document, kind_of=_kind_of, spanned=_spanned, data_uri=_data_uri)


def _kind_of(block: object) -> str:
    return type(block).__name__


def _data_uri(audio: Audio) -> str:
    return f"data:{audio.mime};base64,{base64.b64encode(audio.data).decode()}"


@dataclass(frozen=True)
class _Cell:
    text: str
    is_label: bool
    is_figure: bool
    n_rows: int


def _spanned(table: TableBlock) -> list[list[_Cell]]:
    """Return the cells of each row. A label that is equal in several rows is one cell that spans them."""
    figures = table.figures
    grid = list[list[_Cell]]()
    for i, row in enumerate(table.rows):
        cells = list[_Cell]()
        for column, text in enumerate(row):
            n_rows = 1
            if column < table.n_labels:
                labels = row[: column + 1]
                if i and table.rows[i - 1][: column + 1] == labels:
                    continue
                other_rows = (j for j in range(i, len(table.rows)) if table.rows[j][: column + 1] != labels)
                n_rows = next(other_rows, len(table.rows)) - i
            cells.append(_Cell(text, column < table.n_labels, figures[column], n_rows))
        grid.append(cells)
    return grid
