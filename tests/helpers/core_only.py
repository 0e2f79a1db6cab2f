"""An interpreter that sees the dependencies of the core, and nothing else that is installed.

A program that begins with ``import core_only; core_only.hide_extras()`` runs as if only
``pip install sparse-ir-toolkit`` had been called.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

SETUP = Path(__file__).parents[2] / "setup.cfg"


def read_requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What the core requires, and what each extra adds to it."""
    parser = configparser.ConfigParser()
    parser.read(SETUP, encoding="utf-8")
    core = _parse(parser["options"]["install_requires"])
    extras = {name: _parse(text) for name, text in parser["options.extras_require"].items()}
    return core, extras


def _parse(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.split("\n") if line.strip()]


def normalize(name: str) -> str:
    """The name of a distribution in the form that compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def close(requirements: Iterable[Requirement]) -> set[str]:
    """The distributions that pip would install for these requirements, as far as they are here."""
    names: set[str] = set()
    waiting = [(each, frozenset(each.extras)) for each in requirements]
    seen = set()
    while waiting:
        requirement, extras = waiting.pop()
        name = normalize(requirement.name)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            lines = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        names.add(name)
        for inner in map(Requirement, lines):
            if _applies(inner, extras):
                waiting.append((inner, frozenset(inner.extras)))
    return names


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def hidden_packages(extras: Iterable[str] = ()) -> set[str]:
    """The top-level packages of everything installed that the core, with these extras, lacks."""
    core, offered = read_requirements()
    wanted = [*core, *(each for extra in extras for each in offered[extra])]
    visible = close(wanted) | {"sparse-ir-toolkit"}
    return {
        package
        for package, owners in importlib.metadata.packages_distributions().items()
        if not any(normalize(owner) in visible for owner in owners)
    }


class _Filter:
    """A finder of modules that does not find the hidden ones."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """What the finder finds, or None for a hidden package."""
        if name.partition(".")[0] in self._hidden:
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def hide_extras(*extras: str) -> None:
    """Hide what is installed beside the core and these extras, for this process."""
    hide(*hidden_packages(extras))


def hide(*packages: str) -> None:
    """Hide these top-level packages from every later import of this process."""
    hidden = set(packages)
    for name in list(sys.modules):
        if name.partition(".")[0] in hidden:
            del sys.modules[name]
    sys.meta_path[:] = [_Filter(finder, hidden) for finder in sys.meta_path]
