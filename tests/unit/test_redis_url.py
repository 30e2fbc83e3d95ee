from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import redis_url
from sidecar.errors import SettingsInvalid
from sidecar.redis_url import NAME, RedisUrl

SECRET = "s3cret-of-redis"
LOGIN = f"user:{SECRET}@"


def said(url: str) -> str:
    with pytest.raises(SettingsInvalid) as refused:
        redis_url.parse(url)
    return str(refused.value)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("", "must begin with redis://"),
        (f"localhost:6379/{SECRET}", "must begin with redis://"),
        (f"http://{LOGIN}h:6379", "must begin with redis://, rediss://, unix://"),
        (f"redis+tls://{LOGIN}h:6379", "rediss+sentinel://, redis+cluster:// or rediss+cluster://"),
        (f"redis:{LOGIN}h:6379", "must begin with redis://"),
        (f"redis://user:{SECRET}[@h:6379", "percent-encode what is not a letter or digit"),
        ("unix://", "has no path; write unix:///path/of/the/socket"),
        (f"unix://{LOGIN}/", "has no path"),
        (f"redis://{LOGIN}h1:6379,h2:6379/0", "write redis+sentinel:// or redis+cluster://"),
        (f"redis://{LOGIN}h:6379/first", "has no number as database; write /0 or nothing"),
        (f"redis://{LOGIN}h:6379/-1", "has no number as database"),
        (f"redis://{LOGIN}h:6379/²", "has no number as database"),
        (f"redis://{LOGIN}h:6379/0?retry_on_timeout=true", "only db is taken there"),
        (f"redis://{LOGIN}h:6379/0?socket_timeout=60", "only db is taken there"),
        (f"rediss://{LOGIN}h:6379/0?ssl_cert_reqs=none", "the rest are settings (SIDECAR_REDIS_...)"),
        (f"unix:///run/redis.sock?password={SECRET}", "only db is taken there"),
        ("unix:///run/redis.sock?db=one", "has no number as database"),
        (f"redis://{LOGIN}", "as number 1 of its hosts; write host:6379 or [v6]:port"),
        (f"redis://{LOGIN}h:port", "number 1 of its hosts"),
        (f"redis://{LOGIN}h:65536", "number 1 of its hosts"),
        (f"redis://{LOGIN}h:", "number 1 of its hosts"),
        (f"redis://{LOGIN}:6379", "number 1 of its hosts"),
        (f"redis://{LOGIN}::1:6379", "number 1 of its hosts; write host:6379 or [v6]:port"),
        (f"redis+cluster://{LOGIN}h1:6379,,h2:6379", "number 2 of its hosts"),
        (f"redis+cluster://{LOGIN}h1:6379,h2:x", "number 2 of its hosts"),
        (f"redis+cluster://{LOGIN}h1:6379/1", "names a database; a cluster has number 0 only"),
        (f"redis+cluster://{LOGIN}h1:6379?timeout=1", "has options behind '?'; redis+cluster:// takes none"),
        (f"redis+sentinel://{LOGIN}h1:26379", "names no master; write redis+sentinel://host:26379/NAME"),
        (f"redis+sentinel://{LOGIN}h1:26379/", "names no master"),
        (f"redis+sentinel://{LOGIN}h1:26379/main/one", "has no number as database"),
        (f"redis+sentinel://{LOGIN}h1:26379,/main", "number 2 of its hosts; write host:26379"),
        (f"redis+sentinel://{LOGIN}h1/main?password={SECRET}", "sentinel_user and sentinel_password are known"),
    ],
)
def test_a_bad_url_names_what_is_wrong_and_what_would_be_right_and_never_the_password(url: str, remedy: str) -> None:
    message = said(url)
    assert message.startswith(f"{NAME} ")
    assert remedy in message
    assert SECRET not in message


@given(st.text(max_size=60), st.sampled_from(redis_url.SCHEMES))
def test_any_text_is_a_url_or_a_refusal_that_does_not_quote_it(rest: str, scheme: str) -> None:
    try:
        shown = repr(redis_url.parse(f"{scheme}://user:{SECRET}@{rest}"))
    except SettingsInvalid as error:
        shown = str(error)
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("url", "server", "sentinel"),
    [
        (
            "redis+sentinel://u%40x:p%2Fw@s1,[::1]:26380/main/3?sentinel_user=su&sentinel_password=s%2Fp",
            "redis://u%40x:p%2Fw@10.0.0.1:6379/3",
            "redis://su:s%2Fp@10.0.0.1:6379/0",
        ),
        ("rediss+sentinel://s1/main", "rediss://10.0.0.1:6379/0", "rediss://10.0.0.1:6379/0"),
        ("rediss+cluster://:p@n1,n2:7000", "rediss://:p@10.0.0.1:6379/0", "rediss://10.0.0.1:6379/0"),
    ],
)
def test_servers_get_their_login_and_sentinels_theirs(url: str, server: str, sentinel: str) -> None:
    found = redis_url.parse(url)
    assert found.server("10.0.0.1", 6379) == server
    assert found.sentinel("10.0.0.1", 6379) == sentinel
    assert found.server("::1", 1).endswith(f"[::1]:1/{found.database}")


def test_hosts_have_the_port_of_their_kind_unless_they_say_another() -> None:
    assert redis_url.parse("redis+sentinel://a,b:1,[::1],[::2]:2/main").hosts == (
        ("a", 26379),
        ("b", 1),
        ("::1", 26379),
        ("::2", 2),
    )
    assert redis_url.parse("redis+cluster://a,b:1").hosts == (("a", 6379), ("b", 1))


@pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:1/2", "unix:///run/redis.sock?db=2", "redis://[::1]:1/0"])
def test_the_url_of_one_server_goes_to_the_driver_as_it_is(url: str) -> None:
    found = redis_url.parse(url)
    assert (found.kind, found.given, found.tls) == ("one", url, url.startswith("rediss"))
    assert isinstance(found, RedisUrl)
