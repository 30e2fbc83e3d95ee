"""The sections ``metrics`` and ``identity`` of a catalogue file."""

from __future__ import annotations

from typing import Literal

from sidecar.catalogue.amount import SCALE_MAX
from sidecar.catalogue.model import IdentityRule, Metric
from sidecar.catalogue.scalars import header_name, integer, name_of
from sidecar.catalogue.yaml_reader import Reader, Value

METRIC_KEYS = ("kind", "scale", "unit", "title", "billed_by", "reported")
METRIC_KINDS: tuple[Literal["sum"], Literal["level"]] = ("sum", "level")
BILLED_BY: tuple[Literal["last"], Literal["max"], Literal["integral"]] = ("last", "max", "integral")
IDENTITY_KINDS: tuple[Literal["header", "api_key", "jwt", "client_cert"], ...] = (
    "header",
    "api_key",
    "jwt",
    "client_cert",
)


def read_metrics(reader: Reader, section: Value | None) -> dict[str, Metric]:
    """All metrics, also those with problems: other sections refer to them."""
    metrics: dict[str, Metric] = {}
    for name, value in reader.mapping(section).items():
        name_of(reader, value, name, "metric")
        keys = reader.section(value, METRIC_KEYS)
        kind = METRIC_KINDS[reader.choice(keys.get("kind"), METRIC_KINDS, "sum") == "level"]
        billed_by: Literal["sum", "last", "max", "integral"] = "sum"
        if kind == "level":
            chosen = reader.choice(keys.get("billed_by"), BILLED_BY, "max")
            billed_by = next(choice for choice in BILLED_BY if choice == chosen)
        elif "billed_by" in keys:
            reader.problem(
                keys["billed_by"], "a sum metric is billed by its sum", 'remove this, or set "kind: level" for it'
            )
        if kind == "level" and "reported" in keys:
            reader.problem(keys["reported"], "a level metric is always fed by reports", "remove this")
        metrics[name] = Metric(
            name=name,
            kind=kind,
            scale=integer(reader, keys.get("scale"), 0, SCALE_MAX, 0),
            unit=reader.text(keys.get("unit")),
            title=reader.text(keys.get("title"), name),
            billed_by=billed_by,
            reported=reader.boolean(keys.get("reported")),
        )
    return metrics


XFCC = "x-forwarded-client-cert"  # Envoy's own header for the certificate it has verified
CERTIFICATE_FIELDS = ("Subject", "CN", "URI", "DNS", "Hash")


def read_identity(reader: Reader, section: Value | None) -> tuple[IdentityRule, ...]:
    """The identity rules in the order in which they are tried."""
    rules: list[IdentityRule] = []
    for item in reader.items(section):
        keys = reader.section(item, (*IDENTITY_KINDS, "claim", "scheme"))
        kinds = [kind for kind in IDENTITY_KINDS if kind in keys]
        if len(kinds) != 1:
            reader.problem(
                item,
                f"names {' and '.join(kinds) or 'no source'}",
                'an identity rule names one source and its header, like "header: x-tenant-id" or "api_key: x-api-key"',
            )
            continue
        kind = kinds[0]
        header = header_name(reader, keys[kind], allowed=(XFCC,) if kind == "client_cert" else ())
        rule = IdentityRule(
            kind=kind, header=header, claim=_claim(reader, item, keys, kind), scheme=_scheme(reader, keys, kind, header)
        )
        if any((rule.kind, rule.header, rule.scheme) == (old.kind, old.header, old.scheme) for old in rules):
            reader.problem(item, f"{kind} in {header} is named twice", "keep the first")
        rules.append(rule)
    return tuple(rules)


def _claim(reader: Reader, item: Value, keys: dict[str, Value], kind: str) -> str:
    if kind == "jwt" and "claim" not in keys:
        reader.problem(item, "the claim is missing", 'name the claim that holds the tenant, like "claim: tenant_id"')
    if kind not in ("jwt", "client_cert") and "claim" in keys:
        reader.problem(keys["claim"], f"{kind} has no claims", 'remove it, or use "jwt" or "client_cert"')
    claim = reader.text(keys.get("claim"))
    if kind == "client_cert" and claim and claim not in CERTIFICATE_FIELDS:
        reader.problem(
            keys["claim"], f'a client certificate has no "{claim}" here', f"one of {', '.join(CERTIFICATE_FIELDS)}"
        )
    return claim


def _scheme(reader: Reader, keys: dict[str, Value], kind: str, header: str) -> str:
    if kind != "api_key" and "scheme" in keys:
        reader.problem(keys["scheme"], f"{kind} has no scheme", 'remove it, or use "api_key"')
    return reader.text(keys.get("scheme"), "Bearer" if kind == "api_key" and header == "authorization" else "")
