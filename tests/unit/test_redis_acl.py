"""The users of k8s/redis-acl.conf have the commands of their part, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sidecar.store.scripts import ALONE

ROOT = Path(__file__).parents[2]
STORE = ROOT / "sidecar" / "store"
# Whatever way there is to a server, and what it is asked at the start.
ALWAYS = {"eval", "evalsha", "select", "cluster|slots", "info", "config|get"}
# How the client says what the driver has a name of its own for.
BY_DRIVER = {"scan_iter": "scan"}
# What scripts of the version before run, which is there while workers are replaced one by one.
BEFORE = {"hexists", "hsetnx"}


def store_methods() -> dict[str, ast.AsyncFunctionDef]:
    tree = ast.parse((STORE / "client.py").read_text())
    store = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Store")
    return {node.name: node for node in store.body if isinstance(node, ast.AsyncFunctionDef)}


def used_by_workers() -> set[str]:
    """Methods of the store that a worker's code names; the rest belongs to the flusher and to commands."""
    sources = [*(ROOT / "sidecar" / "enforcement").glob("*.py"), *(ROOT / "sidecar" / "gateway").glob("*.py")]
    named = {word for source in sources for word in re.findall(r"store\.(\w+)\(", source.read_text())}
    return named | {"check"}


def commands(methods: set[str]) -> set[str]:
    """What these methods run: commands themselves, and those that their scripts run."""
    found, scripts = set(ALWAYS), set()
    pending = [store_methods()[name] for name in methods if name in store_methods()]
    seen = set(methods)
    while pending:
        for node in ast.walk(pending.pop()):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            if node.func.attr in ("_script", "_call") and isinstance(first, str) and first:
                scripts.add(first)
            elif node.func.attr == "_command" and isinstance(first, str):
                found.add(first.lower())
            elif node.func.attr in BY_DRIVER:
                found.add(BY_DRIVER[node.func.attr])
            elif node.func.attr in store_methods() and node.func.attr not in seen:
                seen.add(node.func.attr)
                pending.append(store_methods()[node.func.attr])
    assert scripts
    for name in scripts:
        text = (STORE / "lua" / f"{name}.lua").read_text()
        text += (STORE / "lua" / "prelude.lua").read_text() if name not in ALONE else ""
        found |= {verb.lower() for verb in re.findall(r"redis\.p?call\('(\w+)'", text)}
    return found


def allowed(user: str) -> set[str]:
    lines = (ROOT / "k8s" / "redis-acl.conf").read_text().splitlines()
    words = next(line.split() for line in lines if line.startswith(f"user {user} "))
    assert {"-@all", "resetchannels", "~sc:*"} <= set(words)
    assert [word for word in words if word.startswith(("~", "&", "%"))] == ["~sc:*"]
    return {word[1:] for word in words if word.startswith("+")}


def test_workers_may_run_what_they_run_and_nothing_else() -> None:
    assert allowed("quota-authz") == commands(used_by_workers()) | BEFORE


def test_the_flusher_may_run_what_the_program_runs_and_nothing_else() -> None:
    """It is also the user of the role `all`, so it has a worker's commands, too."""
    assert allowed("quota-flusher") == commands(set(store_methods())) | BEFORE


@pytest.mark.parametrize("user", ["quota-authz", "quota-flusher"])
def test_no_user_has_a_whole_category(user: str) -> None:
    assert [command for command in allowed(user) if command.startswith("@")] == []
