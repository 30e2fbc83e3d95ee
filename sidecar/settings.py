"""Every setting, in one frozen structure that is also the table of their defaults, units and meanings.

Guarantees: all problems are reported at once; an unknown SIDECAR_* name is a problem, with the nearest known one.
Gives up:   settings that change while the program runs: a changed one needs a restart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct, structs

from sidecar import address, postgres_dsn, redis_url
from sidecar.errors import SettingsInvalid
from sidecar.nearest import nearest

PREFIX = "SIDECAR_"
ROLES = ("authz", "flusher", "control")
LOG_LEVELS = ("debug", "info", "warning", "error")
ELSEWHERE = ("SIDECAR_STATE",)  # read by the command line to find a `sidecar dev`
MONTH_S = 31 * 86_400
SECRET_LENGTH_MIN = 16

# Kubernetes gives every pod such names for each Service; a Service called "sidecar" must not stop the program.
_SERVICE_NAME = re.compile(r"SIDECAR_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


def _about(unit: str, sentence: str, low: int | None = None, high: int | None = None, *, secret: bool = False) -> Meta:
    return Meta(description=sentence, ge=low, le=high, extra={"unit": unit, "secret": secret})


class Settings(Struct, frozen=True, kw_only=True):
    """The settings of one program; the environment name of each is SIDECAR_ and the field in upper case."""

    roles: Annotated[tuple[str, ...], _about("list", "What this program does: authz, flusher, control, or all.")] = (
        "authz",
    )
    workers: Annotated[int, _about("processes", "Authz workers that share the listeners.", 1, 256)] = 1
    state_dir: Annotated[
        str, _about("path", "Folder of journals, sockets and the lock; keep it on a disk that lasts.")
    ] = "/var/lib/sidecar"
    authz_listen: Annotated[
        tuple[str, ...], _about("addresses", "Where gateways ask; off loopback it needs authz_secrets.")
    ] = ("127.0.0.1:9000",)
    local_listen: Annotated[str, _about("address", "Where the application beside it asks; loopback or unix: only.")] = (
        "127.0.0.1:9001"
    )
    ops_listen: Annotated[str, _about("address", "Health, readiness and metrics.")] = "0.0.0.0:9002"
    control_listen: Annotated[str, _about("address", "The billing API; put TLS in front of it off loopback.")] = (
        "127.0.0.1:9003"
    )
    authz_secrets: Annotated[
        tuple[str, ...],
        _about("list", "Secrets a gateway may send as x-quota-secret; several while one is replaced.", secret=True),
    ] = ()
    admin_tokens: Annotated[
        tuple[str, ...],
        _about("list", "Bearer tokens of the control API; several while one is replaced.", secret=True),
    ] = ()
    redis_url: Annotated[
        str, _about("url", "One server, sentinels or a cluster, with user and password where needed.", secret=True)
    ] = "redis://127.0.0.1:6379/0"
    redis_ca_file: Annotated[str, _about("path", "Certificate authority for rediss://; empty uses the system's.")] = ""
    redis_cert_file: Annotated[str, _about("path", "Client certificate for rediss://, where Redis asks for one.")] = ""
    redis_key_file: Annotated[str, _about("path", "Key of the client certificate.")] = ""
    redis_prefix: Annotated[str, _about("word", "First part of every Redis key.")] = "sc"
    redis_timeout_ms: Annotated[int, _about("ms", "How long one store call may take.", 5, 5_000)] = 50
    shards: Annotated[int, _about("count", "Slots that tenants spread over; fixed at installation.", 1, 1000)] = 16
    postgres_dsn: Annotated[
        str, _about("dsn", "The ledger; needed by flusher, control and most commands.", secret=True)
    ] = ""
    pgbouncer: Annotated[bool, _about("yes/no", "Whether a PgBouncer in transaction mode lies between.")] = False
    catalogue_file: Annotated[
        str, _about("path", "Catalogue that a program with flusher or control watches and applies.")
    ] = ""
    sync_interval_ms: Annotated[int, _about("ms", "How often changed windows are reported to Redis.", 10, 5_000)] = 500
    lease_ttl_ms: Annotated[int, _about("ms", "How long a lease is spendable after the last sync.", 500, 60_000)] = (
        10_000
    )
    reclaim_after_ms: Annotated[
        int, _about("ms", "Silence after which Redis takes a writer's leases back.", 1_000, 600_000)
    ] = 60_000
    lease_seconds: Annotated[int, _about("s", "Size of a lease, in seconds of the rate seen.", 1, 60)] = 2
    lease_rest_ms: Annotated[
        int,
        _about("ms", "How long a small lease of which Redis has plenty may stay unused with a worker.", 0, 3_600_000),
    ] = 180_000
    lease_units_max: Annotated[int, _about("units", "Largest lease of one limit.", 1, 2**53)] = 1_000_000
    restore_hold: Annotated[
        str, _about("word", "After lost state: full waits reclaim_after_ms, reported only until all writers reported.")
    ] = "full"
    flush_interval_ms: Annotated[int, _about("ms", "Pause between two passes of the flusher.", 10, 60_000)] = 1_000
    changes_interval_ms: Annotated[int, _about("ms", "How often the stream of tenant changes is read.", 10, 5_000)] = (
        500
    )
    tenants_cached_max: Annotated[int, _about("count", "Tenants kept in a worker's memory.", 100, 10_000_000)] = 100_000
    keys_cached_max: Annotated[
        int, _about("count", "API keys, known or unknown, kept in a worker's memory.", 100, 10_000_000)
    ] = 100_000
    request_repeat_s: Annotated[
        int, _about("s", "How long a repeated x-request-id gets the same answer; 0 turns it off.", 0, 600)
    ] = 10
    close_delay_s: Annotated[
        int, _about("s", "How long after its end a period takes usage before it counts as late.", 0, MONTH_S)
    ] = 3_600
    stripe_key: Annotated[
        str, _about("key", "Secret key of the Stripe account; empty turns billing off.", secret=True)
    ] = ""
    stripe_url: Annotated[str, _about("url", "Where Stripe's API is; another one only for tests.")] = (
        "https://api.stripe.com"
    )
    stripe_webhook_secrets: Annotated[
        tuple[str, ...],
        _about("list", "Signing secrets of the webhook endpoint; several while one is replaced.", secret=True),
    ] = ()
    stripe_interval_s: Annotated[
        int, _about("s", "How often a tenant's new usage is sent to Stripe; tenants take turns.", 1, 3_600)
    ] = 300
    stripe_calls_per_s: Annotated[
        int,
        _about("calls/s", "Meter calls of all forwarders together; Stripe takes 1,000 live, 25 in a sandbox.", 1, 950),
    ] = 900
    stripe_bulk: Annotated[bool, _about("yes/no", "Whether usage goes over the v2 meter event stream.")] = False
    stripe_proration: Annotated[
        str, _about("word", "On a change of plan: create_prorations, always_invoice or none.")
    ] = "create_prorations"
    stripe_reconcile_interval_s: Annotated[
        int, _about("s", "How often ledger and Stripe are compared; 0 turns it off.", 0, MONTH_S)
    ] = 86_400
    drain_s: Annotated[int, _about("s", "How long a stop may take to report everything and wait for it.", 1, 600)] = 15
    log_level: Annotated[str, _about("word", "debug, info, warning or error.")] = "info"
    clock_file: Annotated[
        str, _about("path", "Development only: file with the offset of a movable clock; empty is the real time.")
    ] = ""

    def has_role(self, role: str) -> bool:
        """Whether this program plays the role, by name or by ``all``."""
        return role in self.roles or "all" in self.roles

    @property
    def state(self) -> Path:
        """The state directory as a path."""
        return Path(self.state_dir)


_TYPES = get_type_hints(Settings, include_extras=True)
NAMES = {f"{PREFIX}{field.name.upper()}": field for field in structs.fields(Settings)}


def meta(name: str) -> Meta:
    """The unit, sentence and bounds of a field."""
    return cast("Meta", get_args(_TYPES[name])[1])


def is_secret(name: str) -> bool:
    """Whether a field is never printed and may come from a *_FILE."""
    return bool((meta(name).extra or {})["secret"])


def load(environ: Mapping[str, str], **overrides: Any) -> Settings:
    """Read the environment, check everything, and raise SettingsInvalid that names every problem, one a line."""
    problems = [_unknown(name) for name in sorted(environ) if not _known(name)]
    values: dict[str, Any] = {}
    for name, field in NAMES.items():
        try:
            text = _text(environ, name, secret=is_secret(field.name))
            if text is not None:
                values[field.name] = _value(name, field.name, text)
        except SettingsInvalid as error:
            problems.append(str(error))
    settings = Settings(**(values | overrides))
    problems += check(settings)
    if problems:
        raise SettingsInvalid("\n".join(dict.fromkeys(problems)))
    return settings


def environment(settings: Settings) -> dict[str, str]:
    """The inverse of load: what differs from the defaults, as environment names and texts."""
    texts = {}
    for name, field in NAMES.items():
        value = getattr(settings, field.name)
        if value != field.default:
            texts[name] = ",".join(value) if isinstance(value, tuple) else str(value)
    return texts


def check(settings: Settings) -> list[str]:
    """Every problem of the values among each other, as sentences that say what would be right."""
    problems = [*_bad_numbers(settings), *_bad_words(settings), *_bad_addresses(settings)]
    if settings.lease_ttl_ms >= settings.reclaim_after_ms:
        problems.append("SIDECAR_LEASE_TTL_MS must be below SIDECAR_RECLAIM_AFTER_MS, or units could be spent twice")
    if settings.sync_interval_ms * 4 > settings.lease_ttl_ms:
        problems.append("SIDECAR_SYNC_INTERVAL_MS must be at most a quarter of SIDECAR_LEASE_TTL_MS")
    problems += [
        f"SIDECAR_POSTGRES_DSN (or _FILE) is needed for the role {role}"
        for role in ("flusher", "control")
        if settings.has_role(role) and not settings.postgres_dsn
    ]
    if settings.has_role("control") and not settings.admin_tokens:
        problems.append("SIDECAR_ADMIN_TOKENS (or _FILE) is needed for the role control")
    return problems + [
        f"{PREFIX}{name.upper()} holds a secret of fewer than {SECRET_LENGTH_MIN} characters; use a long random one"
        for name in ("authz_secrets", "admin_tokens")
        if any(len(secret) < SECRET_LENGTH_MIN for secret in getattr(settings, name))
    ]


def _bad_numbers(settings: Settings) -> list[str]:
    problems = []
    for name, field in NAMES.items():
        about, value = meta(field.name), getattr(settings, field.name)
        if about.ge is not None and about.le is not None and not about.ge <= value <= about.le:
            unit = (about.extra or {})["unit"]
            problems.append(f"{name} is {value}; it must be from {about.ge} to {about.le} {unit}")
    return problems


def _bad_words(settings: Settings) -> list[str]:
    allowed = {
        "roles": (*ROLES, "all"),
        "restore_hold": ("full", "reported"),
        "log_level": LOG_LEVELS,
        "stripe_proration": ("create_prorations", "always_invoice", "none"),
    }
    problems = []
    for name, words in allowed.items():
        given = getattr(settings, name)
        problems += [
            f"{PREFIX}{name.upper()} has {word!r}{nearest(word, words)}; use {', '.join(words)}"
            for word in (given if isinstance(given, tuple) else (given,))
            if word not in words
        ]
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", settings.redis_prefix):
        problems.append("SIDECAR_REDIS_PREFIX must be 1 to 32 letters, digits, dots, dashes or underscores")
    problems += _bad_redis(settings)
    problems += postgres_dsn.problems(settings.postgres_dsn) if settings.postgres_dsn else []
    if not re.match(r"https?://", settings.stripe_url):
        problems.append("SIDECAR_STRIPE_URL must begin with https:// (http:// only for a stand-in)")
    return problems


def _bad_redis(settings: Settings) -> list[str]:
    try:
        tls = redis_url.parse(settings.redis_url).tls
    except SettingsInvalid as error:
        return [str(error)]
    if bool(settings.redis_cert_file) != bool(settings.redis_key_file):
        return ["SIDECAR_REDIS_CERT_FILE and SIDECAR_REDIS_KEY_FILE belong together; set both or none"]
    if not tls:
        return [
            f"{PREFIX}{name.upper()} is of no use without TLS; begin SIDECAR_REDIS_URL with rediss"
            for name in ("redis_ca_file", "redis_cert_file")
            if getattr(settings, name)
        ]
    return [
        f"{PREFIX}{name.upper()}: there is no file {getattr(settings, name)} this user can read; mend path or rights"
        for name in ("redis_ca_file", "redis_cert_file", "redis_key_file")
        if getattr(settings, name) and not os.access(getattr(settings, name), os.R_OK)
    ]


def _bad_addresses(settings: Settings) -> list[str]:
    problems = []
    listeners = {
        "authz_listen": settings.authz_listen,
        "local_listen": (settings.local_listen,),
        "ops_listen": (settings.ops_listen,),
        "control_listen": (settings.control_listen,),
    }
    if not settings.authz_listen:
        problems.append("SIDECAR_AUTHZ_LISTEN is empty; name at least one address")
    for field, texts in listeners.items():
        name = f"{PREFIX}{field.upper()}"
        for text in texts:
            try:
                where = address.parse(text)
            except SettingsInvalid as error:
                problems.append(f"{name}: {error}")
                continue
            if field == "authz_listen" and not where.loopback and not settings.authz_secrets:
                problems.append(f"{name} {text} is off loopback; set SIDECAR_AUTHZ_SECRETS (or _FILE) or use 127.0.0.1")
            if field == "local_listen" and not where.loopback:
                problems.append(f"{name} {text} is off loopback, where anybody could report usage; use 127.0.0.1")
    return problems


def _known(name: str) -> bool:
    if not name.startswith(PREFIX) or name in NAMES or name in ELSEWHERE or _SERVICE_NAME.fullmatch(name):
        return True
    field = NAMES.get(name.removesuffix("_FILE"))
    return field is not None and name.endswith("_FILE") and is_secret(field.name)


def _unknown(name: str) -> str:
    known = [*NAMES, *(f"{known}_FILE" for known, field in NAMES.items() if is_secret(field.name))]
    return f"{name} is no setting{nearest(name, known) or '; see docs/settings.md'}"


def _text(environ: Mapping[str, str], name: str, *, secret: bool) -> str | None:
    """The raw text of a setting, from its variable or, for a secret, from the file that *_FILE names."""
    path = environ.get(f"{name}_FILE") if secret else None
    if path is None:
        return environ.get(name)
    if name in environ:
        raise SettingsInvalid(f"{name} and {name}_FILE are both set; keep one")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{name}_FILE: cannot read {path}: {error}; mend the path or its rights") from error


def _value(name: str, field: str, text: str) -> Any:
    kind = get_args(_TYPES[field])[0]
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in re.split(r"[,\n]", text) if part.strip())
    if kind is bool:
        words = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        if text.lower() not in words:
            raise SettingsInvalid(f"{name} is {text!r}; use true or false")
        return words[text.lower()]
    if kind is int:
        digits = text.replace("_", "")
        if not (digits.isascii() and digits.isdecimal()):
            unit = (meta(field).extra or {})["unit"]
            raise SettingsInvalid(f"{name} is {text!r}; use a whole number of {unit}")
        return int(digits)
    return text
