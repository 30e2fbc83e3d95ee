"""What parameters an endpoint takes, and reading them as strictly as the API does.

Guarantees: an unknown parameter, a missing one, one of a wrong type and one out of bounds are each refused, by name.
Gives up:   parameters of the real API that this program does not use: they are refused as unknown.
Source: https://docs.stripe.com/error-codes
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from sidecar.embedded.stripe.errors import bad_parameter
from sidecar.embedded.stripe.forms import Form

TEXT_MAX = 5_000
METADATA_KEYS_MAX = 50
METADATA_KEY_MAX = 40
METADATA_VALUE_MAX = 500
DECIMAL_PLACES_MAX = 12
_DECIMAL = re.compile(r"-?\d{1,18}(\.\d+)?", re.ASCII)
_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)

# Reads one raw value of a form, named for the error; raises Refused.
Kind = Callable[[Any, str], Any]


class Fields:
    """The parameters of one endpoint or one nested object."""

    __slots__ = ("_kinds", "_required")

    def __init__(self, kinds: Mapping[str, Kind], required: Iterable[str] = ()) -> None:
        self._kinds = dict(kinds)
        self._required = tuple(required)

    @property
    def names(self) -> set[str]:
        return set(self._kinds)

    def nested(self, name: str) -> Fields | None:
        """The fields of a nested object, for the test that compares them with the SDK's."""
        kind = self._kinds[name]
        inside = getattr(kind, "fields", None)
        return inside if isinstance(inside, Fields) else None

    def read(self, form: Form, prefix: str = "") -> dict[str, Any]:
        """Read all parameters; what was not given is not in the result."""
        values = {}
        for name, raw in form.items():
            kind = self._kinds.get(name)
            full = f"{prefix}[{name}]" if prefix else name
            if kind is None:
                raise bad_parameter(f"Received unknown parameter: {full}", full, "parameter_unknown")
            values[name] = kind(raw, full)
        for name in self._required:
            if name not in values:
                full = f"{prefix}[{name}]" if prefix else name
                raise bad_parameter(f"Missing required param: {full}.", full, "parameter_missing")
        return values


def text(length_max: int = TEXT_MAX) -> Kind:
    def read(raw: Any, param: str) -> str:
        if not isinstance(raw, str):
            raise bad_parameter(f"Invalid string: {raw}", param)
        if not raw:
            raise bad_parameter(
                f"You passed an empty string for '{param}'. We assume empty values are an attempt to unset a "
                f"parameter; however '{param}' cannot be unset. You should remove '{param}' from your request or "
                "supply a non-empty value.",
                param,
                "parameter_invalid_empty",
            )
        if len(raw) > length_max:
            raise bad_parameter(f"Invalid string: {raw[:10]}...; must be at most {length_max} characters", param)
        return raw

    return read


def clearable(kind: Kind) -> Kind:
    """A parameter that an empty text unsets."""

    def read(raw: Any, param: str) -> Any:
        return None if raw == "" else kind(raw, param)

    read.fields = getattr(kind, "fields", None)  # type: ignore[attr-defined]
    return read


def integer(low: int | None = None, high: int | None = None) -> Kind:
    def read(raw: Any, param: str) -> int:
        if isinstance(raw, bool) or not isinstance(raw, str | int) or not _INTEGER.fullmatch(str(raw)):
            raise bad_parameter(f"Invalid integer: {raw}", param, "parameter_invalid_integer")
        value = int(raw)
        for bound, wrong, words in ((low, -1, "greater"), (high, 1, "less")):
            if bound is not None and (value - bound) * wrong > 0:
                raise bad_parameter(
                    f"This value must be {words} than or equal to {bound} (it currently is `{value}`).",
                    param,
                    "parameter_invalid_integer",
                )
        return value

    return read


def boolean(raw: Any, param: str) -> bool:
    if raw in (True, "true", "True", "1"):
        return True
    if raw in (False, "false", "False", "0"):
        return False
    raise bad_parameter(f"Invalid boolean: {raw}", param)


def decimal(places_max: int = DECIMAL_PLACES_MAX) -> Kind:
    """A decimal as an exact text, without trailing zeros."""

    def read(raw: Any, param: str) -> str:
        if not isinstance(raw, str) or not _DECIMAL.fullmatch(raw):
            raise bad_parameter(f"Invalid decimal: {raw}", param)
        if len(raw.partition(".")[2]) > places_max:
            raise bad_parameter(f"Invalid decimal: {raw}; must contain at maximum {places_max} decimal places.", param)
        return plain(Decimal(raw))

    return read


def plain(value: Decimal) -> str:
    """A decimal without exponent and without trailing zeros."""
    found = f"{value:f}"
    return found.rstrip("0").rstrip(".") if "." in found else found


def choice(*words: str) -> Kind:
    def read(raw: Any, param: str) -> str:
        if raw not in words:
            name = re.split(r"[\[\]]+", param.rstrip("]"))[-1]
            raise bad_parameter(f"Invalid {name}: must be one of {' or '.join(words)}", param)
        return str(raw)

    return read


def currency(raw: Any, param: str) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[A-Za-z]{3}", raw):
        raise bad_parameter(f"Invalid currency: {raw}", param)
    return raw.lower()


def by_currency(kind: Kind) -> Kind:
    """A map of currencies."""

    def read(raw: Any, param: str) -> dict[str, Any]:
        if not isinstance(raw, dict):
            raise bad_parameter("Invalid object", param)
        return {currency(name, f"{param}[{name}]"): kind(value, f"{param}[{name}]") for name, value in raw.items()}

    return read


def nested(fields: Fields) -> Kind:
    def read(raw: Any, param: str) -> dict[str, Any]:
        if not isinstance(raw, dict):
            raise bad_parameter("Invalid object", param)
        return fields.read(raw, param)

    read.fields = fields  # type: ignore[attr-defined]
    return read


def array(kind: Kind, count_max: int = 100) -> Kind:
    def read(raw: Any, param: str) -> list[Any]:
        if isinstance(raw, list):
            items = list(enumerate(raw))
        elif isinstance(raw, dict) and all(key.isdecimal() for key in raw):
            items = sorted((int(key), value) for key, value in raw.items())
        else:
            raise bad_parameter("Invalid array", param)
        if len(items) > count_max:
            raise bad_parameter(f"Array {param} exceeded maximum {count_max} allowed elements.", param)
        return [kind(value, f"{param}[{number}]") for number, value in items]

    read.fields = getattr(kind, "fields", None)  # type: ignore[attr-defined]
    return read


def word_or(word: str, kind: Kind) -> Kind:
    """A word that means something, such as ``now``, or a value."""

    def read(raw: Any, param: str) -> Any:
        return word if raw == word else kind(raw, param)

    return read


def texts(raw: Any, param: str) -> dict[str, str]:
    """A map of texts, such as a payload."""
    if not isinstance(raw, dict):
        raise bad_parameter("Invalid object", param)
    for key, value in raw.items():
        if not isinstance(value, str):
            raise bad_parameter(f"Invalid string: {value}", f"{param}[{key}]")
    return raw


def metadata(raw: Any, param: str) -> dict[str, str]:
    """Metadata; an empty text for a key removes it, one for all of them removes all."""
    if raw == "":
        return {"": ""}
    found = texts(raw, param)
    if len(found) > METADATA_KEYS_MAX:
        raise bad_parameter(f"Metadata can have at most {METADATA_KEYS_MAX} keys.", param)
    for key, value in found.items():
        if len(key) > METADATA_KEY_MAX:
            raise bad_parameter(f"Metadata keys can have up to {METADATA_KEY_MAX} characters.", f"{param}[{key}]")
        if len(value) > METADATA_VALUE_MAX:
            raise bad_parameter(
                f"Metadata values can have up to {METADATA_VALUE_MAX} characters, but you passed in a value that is "
                f"{len(value)} characters.",
                f"{param}[{key}]",
            )
    return found


def merged(old: dict[str, str], given: dict[str, str] | None) -> dict[str, str]:
    """Metadata after an update: given keys replace, empty values remove."""
    if given is None:
        return dict(old)
    if given == {"": ""}:
        return {}
    return {key: value for key, value in {**old, **given}.items() if value != ""}


EXPAND: dict[str, Kind] = {"expand": array(text(), 20)}
CREATED: dict[str, Kind] = {}


def _instant_or_range(raw: Any, param: str) -> dict[str, int]:
    bounds = Fields({name: integer(0) for name in ("gt", "gte", "lt", "lte")})
    return bounds.read(raw, param) if isinstance(raw, dict) else {"gte": integer(0)(raw, param), "lte": int(raw)}


CREATED["created"] = _instant_or_range
PAGE: dict[str, Kind] = {
    "limit": integer(1, 100),
    "starting_after": text(),
    "ending_before": text(),
    **EXPAND,
}
