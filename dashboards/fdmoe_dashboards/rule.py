"""Rules of Prometheus, and their YAML: comments included, which no YAML library writes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

# where runbooks are read; `generate.py --runbooks` puts an address in its place
RUNBOOKS = "dashboards/runbooks"
_WIDTH = 120


@dataclass(frozen=True)
class Record:
    """A recording rule; `name` is level:metric:operations."""

    name: str
    expression: str
    why: str = ""

    def fields(self) -> dict[str, Any]:
        return {"record": self.name, "expr": self.expression}


@dataclass(frozen=True)
class Alert:
    """`runbook` is a page's name, without .md. `why` says how the expression keeps still where nothing is wrong."""

    name: str
    expression: str
    severity: str
    summary: str
    description: str
    runbook: str
    wait: str = ""
    why: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    def fields(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expression,
            **({"for": self.wait} if self.wait else {}),
            "labels": {"severity": self.severity, **dict(self.labels)},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.runbook}.md",
            },
        }


@dataclass(frozen=True)
class Group:
    name: str
    rules: tuple[Record | Alert, ...]


def text_of(heading: str, groups: Iterable[Group]) -> str:
    """A rule file."""
    return "\n".join(_lines(heading, groups)) + "\n"


def _lines(heading: str, groups: Iterable[Group]) -> Iterator[str]:
    yield from _comment(heading, "")
    yield "groups:"
    for group in groups:
        yield f"  - name: {group.name}"
        yield "    rules:"
        for place, rule in enumerate(group.rules):
            if place:
                yield ""
            yield from _comment(rule.why, "      ")
            yield textwrap.indent(_dump(rule.fields()), "      ").rstrip()


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines stay as they are."""


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _string)


def _dump(rule: dict[str, Any]) -> str:
    return yaml.dump([rule], Dumper=_Dumper, sort_keys=False, width=_WIDTH - 8, allow_unicode=True)
