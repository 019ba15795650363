"""The worked examples of docs/extending.md."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def example(name: str) -> Any:
    """Run the example that has ``name`` in it; return what it calls so, or None."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (block,) = [part for part in blocks if re.search(rf"\b{name}\b", part)]
    names: dict[str, Any] = {"__name__": "extending"}
    exec(compile(block, PAGE, "exec"), names)
    return names.get(name)
