from __future__ import annotations

from decimal import Decimal

import pytest

from sidecar.billing.outbox.settlement import equal, verdicts
from sidecar.billing.outbox.verification import Adopted, Unbilled, adopt


@pytest.mark.parametrize(
    ("seen", "certain", "unknown", "expected"),
    [
        ("7", "0", ["7"], ["present"]),
        ("0", "0", ["7"], ["absent"]),
        ("3", "0", ["7"], ["ambiguous"]),
        ("10", "3", ["7"], ["present"]),
        ("3", "3", ["7"], ["absent"]),
        ("10", "3", ["7", "2"], ["present", "absent"]),
        ("12", "3", ["7", "2"], ["present", "present"]),
        ("5", "0", ["5", "2", "3"], ["ambiguous"] * 3),
        ("5", "0", ["5", "5"], ["present", "absent"]),
        ("0", "0", ["1"] * 11, ["absent"] * 11),
        ("17", "3", ["1", "4"] + ["1"] * 9, ["present"] * 11),
        ("16", "3", ["1", "4"] + ["1"] * 9, ["ambiguous"] * 11),
        ("10000000000000011", "10000000000000000", ["1"] * 11, ["ambiguous"] * 11),
        ("10000000000000001", "10000000000000000", ["1"], ["ambiguous"]),
        ("0.30000000000000004", "0.1", ["0.2"], ["present"]),
    ],
)
def test_a_sum_settles_only_what_it_must_or_cannot_hold(
    seen: str, certain: str, unknown: list[str], expected: list[str]
) -> None:
    assert verdicts(Decimal(seen), Decimal(certain), [Decimal(value) for value in unknown]) == expected


def test_a_value_that_is_under_way_is_not_told_from_an_equal_one_in_doubt() -> None:
    five = [Decimal(5), Decimal(5)]
    assert verdicts(Decimal(5), Decimal(0), five, [False, True]) == ["ambiguous"] * 2
    assert verdicts(Decimal(0), Decimal(0), five, [False, True]) == ["absent"] * 2
    assert verdicts(Decimal(10), Decimal(0), five, [False, True]) == ["present"] * 2
    mixed = [*five, Decimal(3)]
    assert verdicts(Decimal(8), Decimal(0), mixed, [False, True, False]) == ["ambiguous", "ambiguous", "present"]
    assert verdicts(Decimal(5), Decimal(0), mixed, [False, False, True]) == ["present", "absent", "absent"]


def test_sums_are_equal_as_far_as_a_double_can_tell() -> None:
    assert equal(Decimal(repr(0.1 + 0.2)), Decimal("0.3"))
    assert equal(Decimal(0), Decimal(0))
    assert not equal(Decimal(0), Decimal("0.000000001"))
    assert not equal(Decimal(999_999_999_999), Decimal(1_000_000_000_000) + 2)


def test_what_stripe_has_is_taken_for_the_same_hour_first_and_then_for_the_oldest() -> None:
    windows = [Unbilled(0, 3_600, 5, 1), Unbilled(0, 7_200, 5, 3), Unbilled(1, 7_200, 4, 1)]
    taken, left = adopt({7_200: 12}, windows)
    assert taken == [
        Adopted(0, 7_200, 3, 5, 7_200),
        Adopted(1, 7_200, 1, 4, 7_200),
        Adopted(0, 3_600, 1, 3, 7_200),
    ]
    assert left == {}
    assert [window.amount for window in windows] == [2, 0, 0]


def test_what_no_window_explains_is_told() -> None:
    taken, left = adopt({0: 3, 3_600: 9}, [Unbilled(0, 3_600, 5, 1)])
    assert (sum(item.amount for item in taken), left) == (5, {0: 3, 3_600: 4})
