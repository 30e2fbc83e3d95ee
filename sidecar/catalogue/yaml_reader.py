"""A YAML text as values that know their line and their place, and a list of everything wrong with it.

Guarantees: nothing read here raises on bad input; each problem is noted once with its line, and reading goes on with
            a stand-in, so that one pass finds all of them. Scalars are text: no number passes through a float.
            Duplicate keys are problems. Anchors, aliases and merge keys (``<<``) work.
Gives up:   YAML's own types and tags: what a text means is decided by whoever expects it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import yaml
from msgspec import Struct

from sidecar.nearest import nearest

TEXT_CHARS_MAX = 1_048_576
MERGE_DEPTH_MAX = 8
_TAG = "tag:yaml.org,2002:"


class Value(Struct, frozen=True):
    """A node with its place in dotted form, like ``plans.free.limits.api_calls``."""

    node: yaml.Node
    where: str

    @property
    def line(self) -> int:
        """Line of the file, from 1."""
        return int(self.node.start_mark.line) + 1

    @property
    def scalar(self) -> str | None:
        """The text of a scalar; None for lists and mappings."""
        return str(self.node.value) if isinstance(self.node, yaml.ScalarNode) else None

    @property
    def is_empty(self) -> bool:
        """Nothing written after the key."""
        return self.scalar == "" and self.node.tag == f"{_TAG}null"

    @property
    def is_null(self) -> bool:
        """``null`` or ``~``, written out."""
        return self.node.tag == f"{_TAG}null" and not self.is_empty

    @property
    def kind(self) -> str:
        """What this is, in the words of a message."""
        if isinstance(self.node, yaml.MappingNode):
            return "a mapping"
        if isinstance(self.node, yaml.SequenceNode):
            return "a list"
        return "empty" if self.is_empty else f'"{(self.scalar or "")[:80]}"'


class Reader:
    """Reads one file; collects its problems."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._problems: dict[tuple[int, str], None] = {}

    @property
    def problems(self) -> list[str]:
        """All problems in the order of the file, as "name:line: ..."."""
        return [f"{self.name}:{line}: {text}" for line, text in sorted(self._problems)]

    def problem(self, value: Value, wrong: str, right: str) -> None:
        """Note what is wrong with a value and what would be right."""
        where = f"{value.where}: " if value.where else ""
        self._problems[value.line, f"{where}{wrong}; {right}"] = None

    def document(self, text: str) -> Value | None:
        """The root of a text; None when it is no YAML, which is noted."""
        if len(text) > TEXT_CHARS_MAX:
            self._problems[1, f"the file has {len(text)} characters; at most {TEXT_CHARS_MAX}"] = None
            return None
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            context = f"{error.context}, " if error.context else ""
            self._problems[line, f"this is no YAML: {context}{error.problem}; check indentation, colons, quotes"] = None
            return None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self._problems[line, f"this is no YAML: character {error.character!r} is not allowed; remove it"] = None
            return None
        except RecursionError:
            self._problems[1, "the file is nested too deeply; a catalogue has at most 6 levels"] = None
            return None
        if node is None:
            self._problems[1, "the file is empty; a catalogue has at least metrics and plans"] = None
            return None
        return Value(node, "")

    def section(self, value: Value | None, known: Iterable[str]) -> dict[str, Value]:
        """A mapping with fixed keys; unknown ones are noted with the nearest known one."""
        entries = self.mapping(value)
        known = tuple(known)
        for key in [key for key in entries if key not in known]:
            self.unknown(entries.pop(key), "key", key, known)
        return entries

    def mapping(self, value: Value | None) -> dict[str, Value]:
        """A mapping with free keys; empty when absent or of another type, which is noted."""
        if value is None or value.is_empty or value.is_null:
            return {}
        if not isinstance(value.node, yaml.MappingNode):
            self.problem(value, f"is {value.kind}", 'write a mapping, "key: value" on lines of their own')
            return {}
        return self._entries(value, value.node, 0)

    def _entries(self, value: Value, node: yaml.MappingNode, depth: int) -> dict[str, Value]:
        entries: dict[str, Value] = {}
        lines: dict[str, int] = {}
        merged: list[Value] = []
        for key_node, child in node.value:
            key = Value(key_node, value.where)
            if key.scalar is None:
                self.problem(key, f"a key is {key.kind}", "write a plain name")
            elif key_node.tag == f"{_TAG}merge":
                merged.append(Value(child, value.where))
            elif key.scalar in entries:
                self.problem(
                    key, f'"{key.scalar}" is written twice, first in line {lines[key.scalar]}', "keep one of them"
                )
            else:
                lines[key.scalar] = key.line
                entries[key.scalar] = Value(child, f"{value.where}.{key.scalar}" if value.where else key.scalar)
        for source in merged:
            for mapping in self._merge_sources(source):
                if depth >= MERGE_DEPTH_MAX:
                    self.problem(source, "merges are nested too deeply", f"at most {MERGE_DEPTH_MAX} levels")
                    break
                for name, entry in self._entries(Value(mapping, value.where), mapping, depth + 1).items():
                    entries.setdefault(name, entry)
        return entries

    def _merge_sources(self, source: Value) -> Iterator[yaml.MappingNode]:
        nodes = source.node.value if isinstance(source.node, yaml.SequenceNode) else [source.node]
        for node in nodes:
            if isinstance(node, yaml.MappingNode):
                yield node
            else:
                self.problem(source, f'"<<" takes {Value(node, "").kind}', 'write "<<: *name" of an anchored mapping')

    def items(self, value: Value | None) -> list[Value]:
        """The elements of a list; empty when absent or of another type, which is noted."""
        if value is None or value.is_empty:
            return []
        if not isinstance(value.node, yaml.SequenceNode):
            self.problem(value, f"is {value.kind}", 'write a list, each element after "- "')
            return []
        return [Value(node, f"{value.where}[{index}]") for index, node in enumerate(value.node.value, 1)]

    def text(self, value: Value | None, default: str = "") -> str:
        """A text that is not empty; the default when absent."""
        if value is None:
            return default
        if not value.scalar or value.is_null:
            self.problem(value, f"is {value.kind}", "write a text, or leave the key away")
            return default
        return value.scalar

    def texts(self, value: Value | None) -> list[tuple[Value, str]]:
        """A list of texts; a single text stands for a list of one."""
        if value is not None and value.scalar:
            return [(value, value.scalar)]
        return [(item, text) for item in self.items(value) if (text := self.text(item))]

    def choice(self, value: Value | None, choices: tuple[str, ...], default: str) -> str:
        """One of several words; the default when absent or wrong, which is noted."""
        if value is None:
            return default
        if value.scalar not in choices:
            self.problem(
                value, f"is {value.kind}{nearest(value.scalar or '', choices)}", f"one of {', '.join(choices)}"
            )
            return default
        return value.scalar

    def boolean(self, value: Value | None, *, default: bool = False) -> bool:
        """``true`` or ``false``; YAML's other spellings are refused, so that ``no`` is never a surprise."""
        return self.choice(value, ("true", "false"), "true" if default else "false") == "true"

    def unknown(self, value: Value, noun: str, name: str, known: Iterable[str]) -> None:
        """Note a name that nothing has, with the nearest one that exists."""
        names = tuple(known)
        there = f"there are {', '.join(names)}" if names else "there are none"
        self.problem(value, f'unknown {noun} "{name}"{nearest(name, names)}', there)
