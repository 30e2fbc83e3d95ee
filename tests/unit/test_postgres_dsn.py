from __future__ import annotations

from pathlib import Path

import pytest

from sidecar import postgres_dsn

SECRET = "s3cret-of-postgres"
LOGIN = f"user:{SECRET}@"


@pytest.mark.parametrize(
    ("dsn", "remedy"),
    [
        (f"mysql://{LOGIN}h/db", "must begin with postgresql://"),
        (f"host=h password={SECRET}", "must begin with postgresql://"),
        (f"postgresql://user:{SECRET}[@h/db", "percent-encode what is not a letter or digit"),
        (f"postgresql://{LOGIN}h:port/db", "has a port that is no number; percent-encode"),
        (f"postgresql://user:{SECRET}/more@h:5432/db", "has a port that is no number; percent-encode"),
        (f"postgresql://{LOGIN}h1:5432,h2:x/db", "has a port that is no number"),
        (f"postgresql://{LOGIN}h/db?sslmode=full", "use disable, allow, prefer, require, verify-ca, verify-full"),
        (f"postgresql://{LOGIN}h/db?sslmode=verify-full", "add sslrootcert=/path/of/the/authority.crt"),
        (f"postgresql://{LOGIN}h/db?sslmode=verify-ca&sslrootcert=/not/there", "no file for sslrootcert"),
        (f"postgresql://{LOGIN}h/db?sslcert=/not/there", "no file for sslcert that this user can read"),
    ],
)
def test_a_bad_dsn_names_what_is_wrong_and_what_would_be_right_and_never_the_password(dsn: str, remedy: str) -> None:
    [said] = postgres_dsn.problems(dsn)
    assert said.startswith(postgres_dsn.NAME)
    assert remedy in said
    assert SECRET not in said


def test_a_good_dsn_has_no_problem(tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.touch()
    for dsn in (
        f"postgresql://{LOGIN}h/db",
        f"postgres://{LOGIN}h1:5432,h2:5433/db",
        f"postgres://{LOGIN}[::1]:5433/db",
        "postgresql:///db?host=/run/postgresql",
        f"postgresql://{LOGIN}h/db?sslmode=require",
        f"postgresql://{LOGIN}h/db?sslmode=verify-full&sslrootcert={authority}",
    ):
        assert postgres_dsn.problems(dsn) == []
