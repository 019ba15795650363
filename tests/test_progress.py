import io

from rich.console import Console

from askd_ray.progress import Table


def test_table_wraps_in_a_narrow_terminal():
    table = Table("set", "utterances", title="scores")
    for name in ("a_model_of_a_very_long_name", "another_model_of_a_very_long_name"):
        table.add_column(name)
    table.add_row("a_set_of_a_very_long_name", "12", "10.50 (9.50 to 11.50)", "10.50 (9.50 to 11.50)")
    console = Console(width=40, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    cells = [line.split("┃" if "┃" in line else "│")[1:-1] for line in text.splitlines() if "┃" in line or "│" in line]
    columns = ["".join(row[i].strip() for row in cells) for i in range(4)]
    assert columns[2].startswith("a_model_of_a_very_long_name") and columns[0].endswith("a_set_of_a_very_long_name")
