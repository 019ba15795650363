"""The report of an evaluation: one document, written as a self-contained HTML page and as Markdown."""
