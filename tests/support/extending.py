"""The worked examples of docs/extending.md, for tests that train with them."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def example(name: str) -> Any:
    """Return what the example that defines ``name`` calls so."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (block,) = [part for part in blocks if f"class {name}" in part]
    names: dict[str, Any] = {"__name__": "extending"}
    exec(compile(block, PAGE, "exec"), names)
    return names[name]
