r"""Request targets in the one form in which they are compared with route rules.

Canonical form: the path without query and fragment; percent-encoding decoded once, but for the bytes that would then
mean something else (``/ \ % ? # ;``), for control characters, blanks and bytes beyond ASCII, which stay encoded with
upper-case digits; slashes merged; dot segments removed; no slash at the end.

Some spellings are read differently by different gateways and servers: an encoded or backward slash may separate
segments or be part of a name, ``;`` may begin parameters that the server drops, ``%25`` may be decoded a second time,
and of ``//..`` either the empty segment goes or its parent. ``readings`` returns every reading of such a target,
canonical form first, so that a caller can apply the strictest one.

Gives up: case. Paths are case-sensitive here, as they are in gateways.
"""

from __future__ import annotations

import re
from itertools import product

# A target that is its own canonical form and has one reading: no escapes, no empty or dot-led segments.
_SEGMENT = r"[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9_~!$&'()*+,=:@.-]*"
_PLAIN = re.compile(rf"(?:/{_SEGMENT})+|/")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#\\]*)")
_QUERY = re.compile(r"[?#]")
_SPELLED = re.compile(r"%[0-9A-Fa-f]{2}|[^A-Za-z0-9_~!$&'()*+,=:@./\\;-]")
_KEPT = frozenset(b"/\\%?#;")
_VISIBLE = frozenset(range(ord("!"), ord("~") + 1)) - _KEPT
_DECODED = tuple(chr(byte) if byte in _VISIBLE else f"%{byte:02X}" for byte in range(256))
_DECODE_ROUNDS_MAX = 4
_READING_CHARS_MAX = 8_192


def split_target(target: str) -> tuple[str | None, str]:
    """Host (None unless the target is in absolute form) and raw path, which begins with a slash."""
    host = None
    if not target.startswith("/"):
        absolute = _ABSOLUTE.match(target)
        if absolute:
            host = absolute[1].rpartition("@")[2]
            target = target[absolute.end() :]
    path = _QUERY.split(target, maxsplit=1)[0]
    return host, path if path.startswith("/") else "/" + path


def canonical_path(target: str) -> str:
    """The form in which a gateway would route this target; applying it twice changes nothing."""
    _, path = split_target(target)
    if _PLAIN.fullmatch(path):
        return path
    return _join(_slashes_first(_decode(path).split("/")))


def readings(path: str) -> tuple[str, ...]:
    """Every path that some gateway or server may take this raw path for; the canonical form is the first.

    What a gateway makes of a path may be read once more by the server behind it, so readings of readings belong to
    them. Empty when there are too many to go through: such a path may be anything.
    """
    if _PLAIN.fullmatch(path):
        return (path,)
    once = _decode(path)
    found = {_join(_slashes_first(once.split("/"))): None}
    waiting = [once, *found]
    chars = 0
    while waiting:
        text = waiting.pop()
        for form in (text, _decode_fully(text)) if "%25" in text else (text,):
            ways = _ways(form)
            chars += len(ways) * len(form)
            if len(ways) > 1 and chars > _READING_CHARS_MAX:
                return ()
            for slash, backslash, parameters in ways:
                segments = _split(form, slash=slash, backslash=backslash, parameters=parameters)
                for reading in (_join(_slashes_first(segments)), _join(_dots_first(segments))):
                    if reading not in found:
                        found[reading] = None
                        waiting.append(reading)
    return tuple(found)


def _ways(text: str) -> list[tuple[bool, bool, bool]]:
    """The ways in which encoded slashes, backslashes and parameters of a text may be taken."""
    return list(
        product(
            (False, True) if "%2F" in text else (False,),
            (False, True) if "\\" in text or "%5C" in text else (False,),
            (False, True) if ";" in text else (False,),
        )
    )


def _split(text: str, *, slash: bool, backslash: bool, parameters: bool) -> list[str]:
    if slash:
        text = text.replace("%2F", "/")
    if backslash:
        text = text.replace("\\", "/").replace("%5C", "/")
    segments = text.split("/")
    return [segment.partition(";")[0] for segment in segments] if parameters else segments


def _decode(path: str) -> str:
    """One round of percent-decoding; every byte comes out in its only form. Characters are bytes (latin-1)."""
    return _SPELLED.sub(_respell, path)


def _respell(spelled: re.Match[str]) -> str:
    text = spelled[0]
    if text.startswith("%") and text != "%":
        return _DECODED[int(text[1:], 16)]
    if text <= "\xff":
        return _DECODED[ord(text)]
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _decode_fully(once: str) -> str:
    """Decoded again until nothing changes; a semicolon uncovered by that is a parameter to whoever did it."""
    text = once
    for _ in range(_DECODE_ROUNDS_MAX):
        further = _decode(text.replace("%25", "%")).replace("%3B", ";")
        if further == text:
            break
        text = further
    return text


def _slashes_first(segments: list[str]) -> list[str]:
    """Slashes merged, then dot segments removed: ``/a//../b`` is ``/b``, as in Nginx."""
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment not in ("", "."):
            kept.append(segment)
    return kept


def _dots_first(segments: list[str]) -> list[str]:
    """Dot segments removed, then slashes merged: ``/a//../b`` is ``/a/b``, as in Envoy."""
    kept: list[str] = []
    for segment in segments[1:]:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    return [segment for segment in kept if segment]


def _join(segments: list[str]) -> str:
    return "/" + "/".join(segments)
