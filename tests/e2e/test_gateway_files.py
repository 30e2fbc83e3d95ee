"""The guides, the configurations and the catalogues say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from sidecar.catalogue.load import read
from sidecar.gateway.fields import name_part
from tests.e2e.gateways import ROOT, variant

GUIDES = sorted((ROOT / "docs" / "gateways").glob("*.md"))
EXAMPLES = sorted((ROOT / "sidecar" / "catalogue" / "examples").glob("*.yaml"))


def blocks(guide: str, language: str) -> Iterator[Any]:
    text = (ROOT / "docs" / "gateways" / guide).read_text()
    for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL):
        yield from yaml.safe_load_all(block)


def ext_authz() -> dict[str, Any]:
    config = yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text())
    (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
    found: dict[str, Any] = chain["filters"][0]["typed_config"]["http_filters"][0]["typed_config"]
    return found


def names(patterns: dict[str, Any]) -> list[str]:
    return [one.get("exact") or one["prefix"] + "*" for one in patterns["patterns"]]


def test_there_is_a_guide_for_every_gateway() -> None:
    assert {guide.stem for guide in GUIDES} == {"envoy", "istio", "envoy-gateway", "nginx", "traefik", "caddy"}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_yaml_block_of_a_guide_is_yaml_and_every_link_leads_somewhere(guide: Any) -> None:
    list(blocks(guide.name, "yaml"))
    for link in re.findall(r"\]\(([^)#]+)\)", guide.read_text()):
        assert (guide.parent / link).exists(), link


def test_istio_passes_the_same_headers_as_envoy() -> None:
    filter_ = ext_authz()
    response = filter_["http_service"]["authorization_response"]
    provider = next(blocks("istio.md", "yaml"))["meshConfig"]["extensionProviders"][0]["envoyExtAuthzHttp"]
    assert provider["includeRequestHeadersInCheck"] == names(filter_["allowed_headers"])
    assert provider["headersToUpstreamOnAllow"] == names(response["allowed_upstream_headers"])
    assert provider["headersToDownstreamOnAllow"] == names(response["allowed_client_headers_on_success"])
    assert provider["headersToDownstreamOnDeny"] == names(response["allowed_client_headers"])
    assert provider["timeout"] == filter_["http_service"]["server_uri"]["timeout"]
    assert provider["pathPrefix"] == filter_["http_service"]["path_prefix"]
    assert provider["failOpen"] is filter_["failure_mode_allow"] is False


def test_two_tries_of_a_check_fit_into_its_timeout() -> None:
    """Envoy uses the largest back-off as the timeout of a try, which is documented nowhere near it."""
    service = ext_authz()["http_service"]
    one_try_s = float(service["retry_policy"]["retry_back_off"]["max_interval"].removesuffix("s"))
    base_s = float(service["retry_policy"]["retry_back_off"]["base_interval"].removesuffix("s"))
    assert one_try_s > 0.05, "the sidecar may wait 50 ms for Redis"
    assert 2 * one_try_s + base_s <= float(service["server_uri"]["timeout"].removesuffix("s"))


@pytest.mark.parametrize("name", ["open", "unix-socket"])
def test_the_variants_of_the_guides_exist(name: str) -> None:
    changed = [
        path.name
        for path in (ROOT / "envoy" / "envoy.yaml", *(ROOT / "nginx").glob("*.conf"))
        if f"# variant {name}: " in path.read_text() and variant(path.read_text(), name) != path.read_text()
    ]
    assert "envoy.yaml" in changed
    assert len(changed) == 2
    for guide in ("envoy.md", "nginx.md"):
        assert f"`{name}`" in (ROOT / "docs" / "gateways" / guide).read_text()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_nginx_passes_and_strips_every_feature_that_an_example_forwards(example: Any) -> None:
    """Nginx has no patterns for header names, so that a feature that is missing here could be forged."""
    reads = (ROOT / "nginx" / "quota-features-read.conf").read_text().lower()
    passes = (ROOT / "nginx" / "quota-features-pass.conf").read_text().lower()
    for plan in read(example).plans.values():
        for feature in plan.forward:
            header = f"x-quota-feature-{name_part(feature)}"
            variable = f"$quota_feature_{name_part(feature).replace('-', '_')}"
            assert re.search(rf"{re.escape(variable)}\s+\$upstream_http_{header.replace('-', '_')};", reads), header
            assert re.search(rf"proxy_set_header {header}\s+{re.escape(variable)};", passes), header


def test_what_identifies_in_an_example_is_asked_about_or_stripped() -> None:
    """An identity header that gateways neither show to the sidecar nor take from clients could be forged."""
    config = (ROOT / "envoy" / "envoy.yaml").read_text()
    stripped = [re.compile(pattern.replace("\\\\", "\\")) for pattern in re.findall(r'regex: "([^"]+)"', config)]
    shown = names(ext_authz()["allowed_headers"])
    for example in EXAMPLES:
        catalogue = read(example)
        for header in {rule.header for rule in catalogue.identity} | {catalogue.user_header} - {""}:
            assert header in shown or any(pattern.fullmatch(header) for pattern in stripped), header
