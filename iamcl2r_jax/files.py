"""Small files that appear whole or not at all."""

import json
import os
from typing import Any

from etils import epath


def write_json(path: str, value: Any) -> None:
    """Writes a value as JSON: to a neighbouring file first, which then takes the name."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{os.getpid()}"
    draft.write_text(_encode(value))
    draft.replace(path)


def read_json(path: str) -> Any:
    """The value in a JSON file, or None if there is no such file."""
    path = epath.Path(path)
    return json.loads(path.read_text()) if path.exists() else None


def as_json(value: Any) -> Any:
    """The value as it comes back from a JSON file: tuples become lists."""
    return json.loads(_encode(value))


def _encode(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
