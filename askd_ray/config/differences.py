"""The settings that decide the result of each stage, and how two recipes differ in them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from askd_ray.config.load import with_absolute_paths, without_secrets
from askd_ray.config.schema import Recipe, Window
from askd_ray.config.train import PLACEMENT

DECIDES: Mapping[str, tuple[str, ...]] = {
    "prepare": ("data",),
    "label": ("teacher.model", "teacher.online", "teacher.top_k", "targets", "student.llm.model"),
    "tune": ("tune",),
    "distill": (
        "student",
        *(f"window.{name}" for name in Window.model_fields if name != "choose_on_dev"),
        "augment",
        "objective",
        "train",
        "seed",
    ),
    "export": ("window.choose_on_dev",),
    "evaluate": ("evaluate",),
}
"""The recipe's keys, or whole sections, that decide a stage's result, besides the keys of earlier stages."""

_PLACEMENT = tuple(f"train.{name}." for name in PLACEMENT)  # how a run is carried out decides no result
_MAX_SHOWN = 80


@dataclass(frozen=True)
class SettingDifference:
    """A key in which the recorded recipe of a stage and a given one differ, with both values."""

    key: str
    recorded: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.key} = {self.given_text} (before: {self.recorded_text})"

    @property
    def recorded_text(self) -> str:
        """The recorded value, for one line."""
        return _shown(self.recorded)

    @property
    def given_text(self) -> str:
        """The given value, for one line."""
        return _shown(self.given)


def differences(recorded: Recipe, given: Recipe, stage: str) -> list[SettingDifference]:
    """Return the differences between the recorded recipe of ``stage`` and ``given``, in the keys that decide it."""
    before, now = plain(recorded), plain(given)
    changed = (d for key in DECIDES.get(stage, ()) for d in _compare(key, value_at(before, key), value_at(now, key)))
    return [difference for difference in changed if not f"{difference.key}.".startswith(_PLACEMENT)]


def plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values with absolute paths and without credentials, for comparisons."""
    return without_secrets(with_absolute_paths(recipe)).model_dump(mode="json")


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key."""
    for part in key.split("."):
        values = values[part]
    return values


def copy_decided(source: Mapping[str, Any], target: dict[str, Any], stage: str) -> None:
    """Copy the values of all keys that decide ``stage`` from one plain recipe into another."""
    for key in DECIDES[stage]:
        *sections, name = key.split(".")
        inner = target
        for section in sections:
            inner = inner[section]
        inner[name] = value_at(source, key)


def _compare(key: str, before: Any, now: Any) -> Iterator[SettingDifference]:
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from _compare(f"{key}.{name}", before.get(name), now.get(name))
    else:
        yield SettingDifference(key, before, now)


def _shown(value: Any) -> str:
    """Return a value for one line; for sources and test sets only their paths."""
    if isinstance(value, list) and value and all(isinstance(source, dict) and "path" in source for source in value):
        value = ", ".join(str(source["path"]) for source in value)
    text = "null" if value is None else str(value).removesuffix(".0")
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
