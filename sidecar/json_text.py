"""JSON that somebody outside the program wrote."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from sidecar.errors import JsonInvalid

Kind = TypeVar("Kind")


def decoded(text: bytes | str, kind: type[Kind]) -> Kind:
    """The text as a structure (RFC 8259); JsonInvalid for anything else, however deeply it is nested."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JsonInvalid(str(error)) from error
    except RecursionError as error:
        raise JsonInvalid("JSON is nested too deeply") from error
