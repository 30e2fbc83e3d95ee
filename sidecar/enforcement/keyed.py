"""What a tenant has by id: limits, or windows. Few are looked through, many are looked up.

Most tenants have a handful of either, and there are very many tenants: a dictionary for each would take more than what
is in it. Whoever puts something in or takes it out keeps what is returned in place of what there was.
"""

from __future__ import annotations

from collections.abc import Hashable, ValuesView
from typing import Any, Generic, Protocol, TypeVar

FEW = 8


class Identified(Protocol):
    """Something that knows what it is found by."""

    @property
    def id(self) -> Hashable: ...


V = TypeVar("V", bound=Identified)


class Few(tuple[V, ...], Generic[V]):
    """At most FEW of them, in the order in which they were put in."""

    __slots__ = ()

    def get(self, key: Hashable) -> V | None:
        """What has this id."""
        for one in self:
            if one.id == key:
                return one
        return None

    def values(self) -> Few[V]:
        """All of them."""
        return self

    def put(self, value: V) -> Few[V] | Many[V]:
        """The same with another one at the end, or in place of the one with its id."""
        if self.get(value.id) is not None:
            return Few(value if one.id == value.id else one for one in self)
        return Few((*self, value)) if len(self) < FEW else Many({one.id: one for one in (*self, value)})

    def without(self, key: Hashable) -> Few[V]:
        """The same but for one."""
        return Few(one for one in self if one.id != key) or NONE


class Many(Generic[V]):
    """More than that, likewise."""

    __slots__ = ("_by_id",)

    def __init__(self, by_id: dict[Hashable, V]) -> None:
        self._by_id = by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, key: Hashable) -> V | None:
        """What has this id."""
        return self._by_id.get(key)

    def values(self) -> ValuesView[V]:
        """All of them."""
        return self._by_id.values()

    def put(self, value: V) -> Many[V]:
        """The same with another one at the end, or in place of the one with its id."""
        self._by_id[value.id] = value
        return self

    def without(self, key: Hashable) -> Few[V] | Many[V]:
        """The same but for one."""
        self._by_id.pop(key, None)
        return self if len(self) > FEW // 2 else Few(self._by_id.values())


Keyed = Few[V] | Many[V]
NONE: Few[Any] = Few()
