"""What a run is: the settings that it may not change, and the images that it is trained on."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

_MOST_LINES = 20


def _unequal(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    return before.get(name) != now.get(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """What checkpoints keep of their run, so that no other one goes on from them.

    Attributes:
      settings: {name: value as text}, the resolved settings that may not change; empty: unknown.
      data: what `ImageDataset.identity` tells of the images; empty: unknown.
      differs: function (name, settings there, settings here) -> whether it is another setting: one
        that only one side names may have its default on the other.
    """

    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    differs: Callable[[str, Mapping[str, str], Mapping[str, str]], bool] = _unequal

    def to_text(self) -> str:
        """As a checkpoint keeps it."""
        return json.dumps({"settings": self.settings, "data": self.data}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> "Identity":
        """What `to_text` wrote, by this version or another one."""
        found = json.loads(text)
        return cls(settings=found.get("settings", {}), data=found.get("data", {}))

    def differences(self, before: "Identity") -> list[str]:
        """What differs from the run `before`, a line each; empty: nothing."""
        lines = []
        if before.settings and self.settings:
            lines = [
                f"{name} = {before.settings.get(name, '(not set)')} there, "
                f"{self.settings.get(name, '(not set)')} asked for"
                for name in sorted(before.settings.keys() | self.settings.keys())
                if self.differs(name, before.settings, self.settings)
            ]
        lines += data_differences(before.data, self.data)
        if len(lines) > _MOST_LINES:
            lines = [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more"]
        return lines


def data_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two data sets, a line each; what only one of them tells is no
    difference.
    """
    lines = []
    for name in sorted(before.keys() & now.keys()):
        there, here = before[name], now[name]
        if isinstance(there, dict) and isinstance(here, dict):
            lines += [f"{name}: {line}" for line in data_differences(there, here)]
        # Digests of different kinds, as of local and of remote files, say nothing of each other.
        elif there != here and _kind_of(name, there) == _kind_of(name, here):
            lines.append(f"data: {name} {there} there, {here} here")
    return lines


def _kind_of(name, value):
    return str(value).split(":", 1)[0] if name == "content" else None
