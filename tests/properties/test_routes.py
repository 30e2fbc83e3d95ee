"""Route matching: no spelling of a target escapes its rule, and the table agrees with a list walked from the top."""

from __future__ import annotations

import fnmatch
import re
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.catalogue.model import RouteRule
from sidecar.catalogue.path import readings
from sidecar.catalogue.pattern import compile_path, host_covers
from sidecar.catalogue.routes import MEMO_ENTRIES_MAX, RouteTable, canonical_path, shadowed_by

UNRESERVED = string.ascii_letters + string.digits + "-._~"
RULES = (
    RouteRule(name="health", methods=("GET",), path="/healthz", costs={}),
    RouteRule(name="admin", path="/v1/admin/**", costs={"calls": 1}, requires=("admin",)),
    RouteRule(name="run", methods=("POST",), path="/v1/agents/{id}/run", costs={"calls": 1, "runs": 1}),
    RouteRule(name="models", path="/v1/models/{model}:generate", costs={"calls": 5}),
    RouteRule(name="cafe", path="/v1/café", costs={"calls": 7}),
    RouteRule(name="hosted", host="*.files.example.com", path="/**", costs={"calls": 2}),
    RouteRule(name="public", path="/public/**", costs={}),
    RouteRule(name="default", costs={"calls": 1}),
)
TABLE = RouteTable(RULES)

segment = st.text(UNRESERVED, min_size=1, max_size=6).filter(lambda text: text not in (".", ".."))
paths = st.one_of(
    st.lists(segment, max_size=5).map(lambda parts: "/" + "/".join(parts)),
    st.sampled_from(["/healthz", "/v1/admin", "/v1/admin/users", "/v1/models/m:generate", "/public/x"]),
    segment.map(lambda name: f"/v1/agents/{name}/run"),
)


@st.composite
def respelled(draw: st.DrawFn, path: str) -> str:
    """The same path with encoded characters, empty and dot segments, a query, in absolute form."""
    spelled = ""
    for char in path:
        if char == "/":
            spelled += draw(st.sampled_from(["/", "/", "//", "/./", "/%2e/", "/x/../", "/x/%2E%2e/", "/.//./"]))
        else:
            spelled += draw(st.sampled_from([char, char, f"%{ord(char):02x}", f"%{ord(char):02X}"]))
    spelled += draw(st.sampled_from(["", "", "/", "//", "/.", "/y/.."]))
    spelled += draw(st.sampled_from(["", "?", "?a=/v1/../b", "?%2e%2e/", "#x"]))
    return draw(st.sampled_from(["", "", "", "http://a.test", "HTTPS://u:p@A.test:443"])) + spelled


@given(st.data())
def test_no_respelling_escapes_its_rule(data: st.DataObject) -> None:
    path = data.draw(paths)
    target = data.draw(respelled(path))
    assert canonical_path(target) == canonical_path(path)
    for method in ("GET", "POST"):
        assert TABLE.match(method, "a.test", target) is TABLE.match(method, "a.test", path)


@given(st.data())
def test_an_ambiguous_spelling_is_never_read_less_strictly(data: st.DataObject) -> None:
    """Whatever one server makes of it, no cost and no requirement of that reading is missing."""
    path = data.draw(paths)
    sneaky = ""
    for char in path:
        choices = {"/": ["/", "%2f", "%2F", "\\", "%5c", ";p=1/", "/..;/../x/", "%252F", "/;/"]}
        sneaky += data.draw(st.sampled_from(choices.get(char, [char, char, f"%25{ord(char):02x}"])))
    sneaky = "/" + sneaky.lstrip("/")
    for reading in readings(sneaky):
        expected, actual = TABLE.match("POST", "a.test", reading), TABLE.match("POST", "a.test", sneaky)
        assert set(expected.requires) <= set(actual.requires)
        assert all(actual.costs.get(metric, 0) >= cost for metric, cost in expected.costs.items())


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_target_has_a_stable_form_and_a_rule(target: str) -> None:
    form = canonical_path(target)
    assert canonical_path(form) == form
    assert form.startswith("/")
    assert not set(form.split("/")) & {".", ".."}
    assert "//" not in form
    assert re.fullmatch(r"[!-~]+", form)
    assert readings("/" + target.partition("?")[0].partition("#")[0])
    assert TABLE.match("GET", "a.test", target) in RULES or TABLE.match("GET", "a.test", target).name


@pytest.mark.parametrize(
    ("target", "form"),
    [
        ("/a/b", "/a/b"),
        ("/", "/"),
        ("", "/"),
        ("*", "/*"),
        ("http://h", "/"),
        ("http://h?q=1", "/"),
        ("http://h/a", "/a"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%5Cb", "/a%5Cb"),
        ("/%zz", "/%25zz"),
        ("/%", "/%25"),
        ("/a b", "/a%20b"),
        ("/caf\xc3\xa9", "/caf%C3%A9"),
        ("/%21%2A%7e", "/!*~"),
        ("/../../a", "/a"),
        ("/a//../b", "/b"),
        ("/%00", "/%00"),
        ("/a;p=1/b", "/a;p=1/b"),
        ("/%252e", "/%252e"),
        ("//host/a", "/host/a"),
    ],
)
def test_canonical_forms(target: str, form: str) -> None:
    assert canonical_path(target) == form


@pytest.mark.parametrize(
    "target",
    [
        "/v1/admin",
        "/v1/admin/",
        "//v1//admin/users",
        "/v1/%61dmin/users",
        "/v1/x/../admin/users",
        "/v1/x/%2e%2E/admin/users",
        "/public/..%2Fv1/admin/users",
        "/public\\..\\v1\\admin",
        "/public/..;/v1/admin",
        "/v1;x/admin;y/users",
        "/v1%2Fadmin",
        "/v1;p=1/admin/..;/../x/users",  # resolved by the gateway first, stripped by the server after
        "/v1/%2561dmin/users",
        "/v1/admin/x//../..//users",
        "/v1/admin?x",
        "/v1/admin#x",
        "http://other.test/v1/admin",
    ],
)
def test_known_tricks_need_the_feature(target: str) -> None:
    assert TABLE.match("GET", "a.test", target).requires == ("admin",)


def test_an_encoded_slash_in_a_name_still_pays_for_the_run() -> None:
    assert TABLE.match("POST", "a.test", "/v1/agents/a%2Fb/run").name == "run"


def test_two_readings_of_which_none_is_stricter_are_merged() -> None:
    table = RouteTable(
        (
            RouteRule(name="paid", path="/paid/**", costs={"calls": 9}),
            RouteRule(name="gated", path="/gated/**", requires=("pro",)),
        )
    )
    rule = table.match("GET", "", "/gated/..%2Fpaid/x")
    assert (rule.name, rule.costs, rule.requires) == ("gated", {"calls": 9}, ("pro",))


def test_a_path_with_too_many_readings_meets_the_strictest_of_all_rules() -> None:
    target = "/public/" + "%2F;\\%25/" * 800
    assert readings(target) == ()
    started = time.perf_counter()
    rule = TABLE.match("GET", "a.test", target)
    assert time.perf_counter() - started < 0.05
    assert rule.requires == ("admin",)
    assert rule.costs == {"calls": 7, "runs": 1}


def test_head_falls_under_get_and_methods_ignore_case() -> None:
    table = RouteTable((RouteRule(name="export", methods=("GET",), path="/export"),))
    assert table.match("HEAD", "", "/export").name == "export"
    assert table.match("get", "", "/export").name == "export"
    assert table.match("POST", "", "/export").name == "default"


@pytest.mark.parametrize("host", ["a.files.example.com", "A.Files.Example.com:8443", "b.a.files.example.com."])
def test_hosts_match_without_case_port_and_trailing_dot(host: str) -> None:
    assert TABLE.match("GET", host, "/x").name == "hosted"
    assert TABLE.match("GET", "a.test", f"http://{host}/x").name == "hosted"
    assert TABLE.match("GET", "files.example.com", "/x").name == "default"


def test_segments_with_a_wildcard_inside() -> None:
    assert TABLE.match("POST", "", "/v1/models/large:generate").name == "models"
    assert TABLE.match("POST", "", "/v1/models/large%3agenerate").name == "models"
    assert TABLE.match("POST", "", "/v1/models/:generate").name == "default"
    assert TABLE.match("POST", "", "/v1/models/large:count").name == "default"


def test_patterns_beyond_ascii_match_their_bytes() -> None:
    for target in ("/v1/caf%c3%a9", "/v1/caf\xc3\xa9"):
        assert TABLE.match("GET", "", target).name == "cafe"
    assert TABLE.match("GET", "", "/v1/caf%e9").name == "default"


parts = st.sampled_from(["a", "b", "ab", "*", "{x}", "a*", "*b"])
patterns = st.builds(
    lambda names, rest: "/" + "/".join([*names, "**"] if rest else names), st.lists(parts, max_size=3), st.booleans()
)
rules = st.lists(
    st.builds(
        lambda path, methods, host: (path, tuple(sorted(methods)), host),
        patterns,
        st.sets(st.sampled_from(["GET", "POST", "PUT"]), max_size=2),
        st.sampled_from(["", "h.test", "*.test"]),
    ),
    max_size=8,
).map(
    lambda found: tuple(
        RouteRule(name=f"r{place}", path=path, methods=methods, host=host)
        for place, (path, methods, host) in enumerate(found)
    )
)


def fits(pattern: str, path: str) -> bool:
    """A slow model of path patterns."""
    wanted = [re.sub(r"\{.*?\}", "*", part) for part in pattern.split("/") if part]
    names = [part for part in path.split("/") if part]
    if wanted and wanted[-1] == "**":
        wanted.pop()
        names = names[: len(wanted)]
    return len(wanted) == len(names) and all(
        fnmatch.fnmatchcase(name, want) and len(name) >= len(want) for name, want in zip(names, wanted, strict=True)
    )


@given(
    rules,
    st.sampled_from(["GET", "POST", "DELETE"]),
    st.sampled_from(["h.test", "i.test", "test"]),
    st.lists(st.sampled_from(["a", "b", "ab", "aab", "c"]), max_size=4).map(lambda names: "/" + "/".join(names)),
)
def test_the_table_agrees_with_a_list_walked_from_the_top(
    found: tuple[RouteRule, ...], method: str, host: str, path: str
) -> None:
    first = next(
        (
            rule.name
            for rule in found
            if (not rule.methods or method in rule.methods)
            and (rule.host in ("", host) or (rule.host == "*.test" and host.endswith(".test")))
            and fits(rule.path, path)
        ),
        "default",
    )
    table = RouteTable(found)
    for _ in range(2):
        assert table.match(method, host, path).name == first
    assert first not in {found[place].name for place, _ in shadowed_by(found)}


@given(patterns, patterns, st.lists(st.sampled_from(["a", "b", "ab", "xb", "ax", "c"]), max_size=4))
def test_a_pattern_that_covers_another_takes_all_its_paths(one: str, other: str, names: list[str]) -> None:
    path = "/" + "/".join(names)
    if compile_path(one).covers(compile_path(other)) and fits(other, path):
        assert fits(one, path)


def test_hosts_cover_each_other_by_name() -> None:
    assert host_covers("", "*.a.test")
    assert host_covers("*.test", "*.a.test")
    assert not host_covers("*.a.test", "*.test")
    assert not host_covers("a.test", "")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("v1", 'begins with a slash: "/v1"'),
        ("/a/../b", 'write "/b"'),
        ("/a?x=1", 'write "/a"'),
        ("/a//b", 'write "/a/b"'),
        ("/a/**/b", "comes last"),
        ("/{a}{b}", "more than one wildcard"),
        ("/{a-b}", "no placeholder"),
    ],
)
def test_patterns_that_nothing_could_fit_are_refused(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        compile_path(pattern)


def test_the_memo_is_bounded_and_keeps_what_is_hot() -> None:
    table = RouteTable(RULES)
    for number in range(MEMO_ENTRIES_MAX * 3):
        table.match("GET", "", f"/v1/items/{number}")
        table.match("GET", "", "/v1/admin")
    assert len(table._hot) + len(table._cold) <= 2 * MEMO_ENTRIES_MAX
    assert ("GET", "", "/v1/admin") in {**table._hot, **table._cold}
