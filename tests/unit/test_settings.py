from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import SettingsInvalid
from sidecar.settings import NAMES, Settings, check, environment, is_secret, load, meta

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
SECRET = "0123456789abcdef-long"


def problems(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsInvalid) as caught:
        load(environ)
    return str(caught.value).splitlines()


def test_the_defaults_are_valid() -> None:
    assert check(Settings()) == []
    assert load({"PATH": "/bin"}) == Settings()


def test_every_problem_is_reported_at_once() -> None:
    found = problems(
        {"SIDECAR_WORKERS": "many", "SIDECAR_SHARDS": "0", "SIDECAR_LOG_LEVEL": "loud", "SIDECAR_WORKER": "1"}
    )
    assert [line.split()[0] for line in found] == [
        "SIDECAR_WORKER",
        "SIDECAR_WORKERS",
        "SIDECAR_SHARDS",
        "SIDECAR_LOG_LEVEL",
    ]


def test_an_unknown_name_comes_with_the_nearest_known_one() -> None:
    assert problems({"SIDECAR_REDIS_URI": "redis://x"}) == [
        'SIDECAR_REDIS_URI is no setting, did you mean "SIDECAR_REDIS_URL"?'
    ]


@pytest.mark.parametrize(
    "name", ["SIDECAR_PORT", "SIDECAR_SERVICE_HOST", "SIDECAR_PORT_9002_TCP_ADDR", "SIDECAR_CONTROL_SERVICE_PORT_HTTP"]
)
def test_the_names_kubernetes_sets_for_a_service_called_sidecar_are_no_error(name: str) -> None:
    assert load({name: "tcp://10.0.0.1:9002"}) == Settings()


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_text("postgresql://u:p@db/sidecar\n")
    assert load({"SIDECAR_POSTGRES_DSN_FILE": str(file)}).postgres_dsn == "postgresql://u:p@db/sidecar"


def test_a_secret_from_a_file_and_a_variable_is_ambiguous(tmp_path: Path) -> None:
    assert "both set" in problems({"SIDECAR_REDIS_URL": "redis://x", "SIDECAR_REDIS_URL_FILE": str(tmp_path)})[0]


def test_a_secret_file_that_is_not_there_is_named() -> None:
    assert "/no/such/file" in problems({"SIDECAR_ADMIN_TOKENS_FILE": "/no/such/file"})[0]


def test_what_is_no_secret_has_no_file_form() -> None:
    assert "is no setting" in problems({"SIDECAR_WORKERS_FILE": "/x"})[0]


def test_gateways_off_loopback_need_a_secret() -> None:
    assert "SIDECAR_AUTHZ_SECRETS" in problems({"SIDECAR_AUTHZ_LISTEN": "0.0.0.0:9000"})[0]
    given = {"SIDECAR_AUTHZ_LISTEN": "0.0.0.0:9000,unix:/run/a.sock", "SIDECAR_AUTHZ_SECRETS": SECRET}
    assert load(given).authz_listen == ("0.0.0.0:9000", "unix:/run/a.sock")


def test_the_local_listener_stays_on_loopback() -> None:
    assert "off loopback" in problems({"SIDECAR_LOCAL_LISTEN": "10.0.0.1:9001"})[0]


def test_a_wrong_word_comes_with_the_nearest_right_one_and_with_all_of_them() -> None:
    found = problems({"SIDECAR_ROLES": "Authz"})
    assert found == ["SIDECAR_ROLES has 'Authz', did you mean \"authz\"?; use authz, flusher, control, all"]


def test_a_role_names_what_it_needs() -> None:
    found = problems({"SIDECAR_ROLES": "all"})
    assert any("SIDECAR_POSTGRES_DSN" in line for line in found)
    assert any("SIDECAR_ADMIN_TOKENS" in line for line in found)


def test_a_short_secret_is_refused_and_not_shown() -> None:
    found = problems({"SIDECAR_ADMIN_TOKENS": "hunter2"})
    assert "fewer than 16" in found[0]
    assert "hunter2" not in found[0]


def test_a_lease_must_end_before_it_is_taken_back() -> None:
    assert "spent twice" in problems({"SIDECAR_LEASE_TTL_MS": "60000"})[0]


@given(workers=st.integers(1, 256), bouncer=st.booleans(), listen=st.sampled_from(["127.0.0.1:0", "unix:/tmp/a"]))
def test_the_environment_of_settings_loads_them_again(workers: int, bouncer: bool, listen: str) -> None:
    settings = Settings(workers=workers, pgbouncer=bouncer, authz_listen=(listen, "[::1]:9000"), admin_tokens=(SECRET,))
    assert load(environment(settings)) == settings


def test_every_setting_is_documented() -> None:
    rows = dict(re.findall(r"^\| `(SIDECAR_\w+)` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE))
    assert rows == {name: documented(name) for name in NAMES}


def documented(name: str) -> str:
    field = NAMES[name]
    default = ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)
    about = meta(field.name)
    bounds = f" {about.ge:,} to {about.le:,}." if about.ge is not None and about.le is not None else ""
    file = " Or `_FILE`." if is_secret(field.name) else ""
    shown = f"`{default.lower() if isinstance(field.default, bool) else default}`" if default else ""
    return f"{shown} | {(about.extra or {})['unit']} | {about.description}{bounds}{file}"
