"""The worked examples of docs/extending.md, and of other pages."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def example(name: str, page: Path = PAGE) -> Any:
    """Run the example of a page that has ``name`` in it; return what it calls so, or None."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    (block,) = [part for part in blocks if re.search(rf"\b{name}\b", part)]
    names: dict[str, Any] = {"__name__": "extending"}
    exec(compile(block, page, "exec"), names)
    return names.get(name)
