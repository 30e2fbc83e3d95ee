"""Host and path patterns of route rules: compiled segments, and which pattern covers which.

A path pattern is a list of segments. ``*`` or ``{name}`` stands for one segment, or for a part of one
(``{model}:generate``, ``v*``), at most once in each; a last ``**`` stands for any number of segments, none included.
A host pattern is a name, or ``*.`` and a name for everything below it.
"""

from __future__ import annotations

import re

from msgspec import Struct

from sidecar.catalogue.path import canonical_path

_WILDCARD = re.compile(r"\*|\{[A-Za-z_][A-Za-z0-9_]*\}")
_UNMATCHABLE = re.compile(r"[?#\\]|//|/\.\.?(?=/|$)")


class Segment(Struct, frozen=True):
    """One segment: a literal (``suffix`` None), or a wildcard of at least one byte between prefix and suffix."""

    prefix: str
    suffix: str | None = None

    def matches(self, text: str) -> bool:
        """Whether this segment of a canonical path fits."""
        if self.suffix is None:
            return text == self.prefix
        return (
            len(text) > len(self.prefix) + len(self.suffix)
            and text.startswith(self.prefix)
            and text.endswith(self.suffix)
        )

    def covers(self, other: Segment) -> bool:
        """Whether everything that fits ``other`` fits this one."""
        if self.suffix is None or other.suffix is None:
            return self == other or (other.suffix is None and self.matches(other.prefix))
        return other.prefix.startswith(self.prefix) and other.suffix.endswith(self.suffix)


class PathPattern(Struct, frozen=True):
    """A compiled path pattern; ``rest`` is the closing ``**``."""

    segments: tuple[Segment, ...]
    rest: bool

    def covers(self, other: PathPattern) -> bool:
        """Whether every path that fits ``other`` fits this one."""
        mine, theirs = self.segments, other.segments
        if len(mine) > len(theirs) or (not self.rest and (other.rest or len(mine) < len(theirs))):
            return False
        return all(own.covers(their) for own, their in zip(mine, theirs, strict=False))


def compile_path(pattern: str) -> PathPattern:
    """Compile a path pattern; ValueError tells why no path could fit it and what would be right."""
    if not pattern.startswith("/"):
        raise ValueError(f'a path begins with a slash: "/{pattern}"')
    if _UNMATCHABLE.search(pattern):
        bare = canonical_path(pattern.replace("\\", "/"))
        raise ValueError(
            f"paths are matched without query, doubled slashes, backslashes and dot segments, nothing can fit; "
            f'write "{bare}"'
        )
    texts = [text for text in pattern.split("/") if text]
    rest = bool(texts) and texts[-1] == "**"
    if rest:
        texts.pop()
    return PathPattern(tuple(_compile_segment(text) for text in texts), rest)


def _compile_segment(text: str) -> Segment:
    if text == "**":
        raise ValueError('"**" stands for the rest of a path and comes last; "*" stands for one segment')
    wildcards = list(_WILDCARD.finditer(text))
    if len(wildcards) > 1:
        raise ValueError(f'"{text}" has more than one wildcard; one a segment, as in "{{name}}:run"')
    if not wildcards:
        if "{" in text or "}" in text:
            raise ValueError(f'"{text}" is no placeholder; write "{{name}}", letters, digits and "_"')
        return Segment(_canonical(text))
    start, end = wildcards[0].span()
    return Segment(_canonical(text[:start]), _canonical(text[end:]))


def _canonical(text: str) -> str:
    """A piece of a segment as it stands in canonical paths, whose characters are bytes."""
    return canonical_path("/-" + text.encode("utf-8").decode("latin-1"))[2:]


def canonical_host(host: str) -> str:
    """A host as it is compared: lower case, without port and trailing dot."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].rstrip(".").lower()


def compile_host(pattern: str) -> str:
    """Check a host pattern and bring it to its canonical form; ValueError tells what would be right."""
    if not pattern.isascii():
        ascii_form = pattern.encode("idna").decode("ascii")
        raise ValueError(f'gateways see the ASCII form of a host; write "{ascii_form}"')
    host = canonical_host(pattern)
    if host != pattern.lower().rstrip("."):
        raise ValueError(f'hosts are matched without their port; write "{host}"')
    if "*" in host.removeprefix("*.") or host == "*.":
        raise ValueError(f'"{pattern}" has a wildcard where none can be; write a name, or "*.example.com"')
    return host


def host_matches(pattern: str, host: str) -> bool:
    """Whether a canonical host fits; an empty pattern takes every host."""
    if not pattern or pattern == host:
        return True
    return pattern.startswith("*.") and len(host) > len(pattern) - 1 and host.endswith(pattern[1:])


def host_covers(pattern: str, other: str) -> bool:
    """Whether every host that fits ``other`` fits ``pattern``."""
    if pattern.startswith("*.") and other.startswith("*."):
        return other.endswith(pattern[1:])
    return host_matches(pattern, other)
