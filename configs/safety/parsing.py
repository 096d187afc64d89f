"""Parses untrusted YAML and JSON with bounds on size, depth and number of values.

With aliases, 500 bytes of YAML can stand for billions of values. Deep nesting overflows the stack. Both are refused
while the text is parsed.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

LARGEST_YAML = 2**20  # characters; the longest shipped recipe has 5,000
MOST_NODES = 100_000  # values and keys; each use of an alias counts all that it stands for
DEEPEST = 64
_TOO_MANY = f"it stands for more than {MOST_NODES:,} values"
# What PyYAML raises for a tag that does not fit its value, such as `!!bool x`, `!!int ""` or `!!timestamp x`.
_TAGGED_WRONGLY = (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError, RecursionError)
_LONGEST_NUMBER = 100  # digits: base 60 is read in time quadratic in them


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (`1e-3` is a number), no duplicate keys, bounded."""

    twice = False  # allow a key twice in a mapping; the last one counts

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._extents: dict[int, tuple[int, int]] = {}  # id of a finished node -> nodes in it, levels below it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        self._check(self._nodes <= MOST_NODES, _TOO_MANY, event)
        self._check(self._depth <= DEEPEST, f"values are nested deeper than {DEEPEST} levels", event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            self._check(id(node) in self._extents, "an alias is used inside the value it stands for", event)
            return node
        below = [self._extents[id(child)] for child in _children(node)]
        count, height = 1 + sum(nodes for nodes, _ in below), 1 + max((levels for _, levels in below), default=0)
        self._check(height <= DEEPEST, f"values are nested deeper than {DEEPEST} levels by aliases", event)
        self._check(count <= MOST_NODES, _TOO_MANY, event)
        self._extents[id(node)] = count, height
        return node

    @staticmethod
    def _check(right: bool, problem: str, place: yaml.Event | yaml.Node) -> None:
        if not right:
            line = place.start_mark.line + 1 if place.start_mark else "?"
            raise yaml.YAMLError(f"line {line}: {problem}")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`, whose keys may be written over
                continue
            key = self.construct_object(key_node, deep=True)
            try:
                twice = key in seen
                seen.add(key)
            except TypeError:  # PyYAML itself reports a key that cannot be hashed
                continue
            self._check(self.twice or not twice, f"the key `{key}` is given twice; keep one", key_node)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        self._check(len(node.value) <= _LONGEST_NUMBER, f"a number has more than {_LONGEST_NUMBER} digits", node)
        whole = node.tag == "tag:yaml.org,2002:int"
        number: int | float = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        return number


class _LenientLoader(_Loader):
    twice = True


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, twice: bool = False) -> Any:
    """Parses a YAML text with the safe loader.

    Args:
        text: one document.
        twice: allow a key twice in a mapping; the last one counts.

    Raises:
        ValueError: when it is not YAML, has a key twice, or exceeds the bounds above.
    """
    if len(text) > LARGEST_YAML:
        raise ValueError(f"it has more than {LARGEST_YAML:,} characters")
    try:
        return yaml.load(text, Loader=_LenientLoader if twice else _Loader)
    except (yaml.YAMLError, *_TAGGED_WRONGLY) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def parse_json(text: str | bytes) -> Any:
    """Parses a JSON text.

    Raises:
        ValueError: when it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
