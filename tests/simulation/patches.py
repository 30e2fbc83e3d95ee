"""Edits of the program's Lua and Python in memory, for as long as an ExitStack lasts.

Guarantees: an edit fits exactly, or it is an error: a mutation cannot become none unnoticed.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

from sidecar.store.scripts import Script
from tests.simulation import lua

Patch = Callable[[ExitStack], None]


def script(name: str, *edits: tuple[str, str]) -> Patch:
    """Edits of a script's text; every one must fit, so that a mutation cannot become none unnoticed."""

    def apply(stack: ExitStack) -> None:
        text = lua.SCRIPTS[name].text
        for old, new in edits:
            if text.count(old) != 1:
                raise ValueError(f"{name}.lua has {text.count(old)} times: {old}")
            text = text.replace(old, new)
        stack.enter_context(mock.patch.dict(lua.SCRIPTS, {name: Script(name, text)}))

    return apply


def every_script(*edits: tuple[str, str]) -> Patch:
    """Edits of the prelude, in all scripts that have that part of it."""

    def apply(stack: ExitStack) -> None:
        fitting = [name for name, found in lua.SCRIPTS.items() if edits[0][0] in found.text]
        if not fitting:
            raise ValueError(f"no script has: {edits[0][0]}")
        for name in fitting:
            script(name, *edits)(stack)

    return apply


def method(owner: Any, name: str, *edits: tuple[str, str]) -> Patch:
    """Edits of the source of a method, or of a module's function."""

    def apply(stack: ExitStack) -> None:
        function = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in edits:
            if source.count(old) != 1:
                raise ValueError(f"{owner.__name__}.{name} has {source.count(old)} times: {old}")
            source = source.replace(old, new)
        names: dict[str, Any] = {}
        code = compile("from __future__ import annotations\n" + source, f"<mutated {name}>", "exec")
        exec(code, function.__globals__, names)  # noqa: S102 - the program's own source with one line changed
        stack.enter_context(mock.patch.object(owner, name, names[name]))

    return apply


def replaced(owner: Any, name: str, value: Any) -> Patch:
    return lambda stack: stack.enter_context(mock.patch.object(owner, name, value))


def both(*patches: Patch) -> Patch:
    def apply(stack: ExitStack) -> None:
        for patch in patches:
            patch(stack)

    return apply


async def at_once(*_arguments: Any, **_named: Any) -> None:
    """Wait for nothing."""
