"""The report of an evaluation: one document, as a self-contained HTML page and as Markdown."""
