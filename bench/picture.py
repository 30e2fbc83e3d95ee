"""Draws the results as a picture for the README, each number beside its bound, and prints them as a table.

python bench/picture.py     (reads bench/results/latest.json, writes bench/results/latest.svg)
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from bench.report import RESULTS

FONT = 'font-family="sans-serif" font-size="13"'
WIDTH, ROW, TOP, LEFT, BAR = 860, 26, 64, 330, 380


class Row(NamedTuple):
    """A number of the results; ``bound`` is what it should be at least, or at most."""

    part: str
    key: str
    says: str
    bound: float
    least: bool
    unit: str = ""


ROWS = (
    Row("decision", "ratio", "decision, of the bare parser's rate", 0.75, least=True),
    Row("decision", "aiohttp_ratio", "decision, of aiohttp's constant answer", 2, least=True),
    Row("decision", "p99_us", "99 of 100 decisions within, at half of the rate", 1_000, least=False, unit=" us"),
    Row("decision", "p999_us", "999 of 1,000 within", 3_000, least=False, unit=" us"),
    Row("outage", "p99_ratio", "the same without Redis, of the healthy one", 1.5, least=False),
    Row("envoy", "ratio", "Envoy's rate, of that with a constant answer", 0.95, least=True),
    Row("nginx", "ratio", "Nginx' rate, of that with a constant answer", 0.95, least=True),
    Row("redis", "calls_per_1000", "calls of Redis per 1,000 requests", 1, least=False),
    Row("redis", "calls_per_1000_tail", "the same over a long tail of tenants", 20, least=False),
    Row("memory", "start_mib", "memory of a worker at its start", 60, least=False, unit=" MiB"),
    Row("memory", "bytes_per_key", "more for each tenant and metric", 1_024, least=False, unit=" B"),
    Row("start", "ready_ms", "ready after", 500, least=False, unit=" ms"),
    Row("flusher", "rows_per_s", "windows a second into Postgres", 50_000, least=True),
)

# The benchmark that measures a part, where it is not named like it.
COMMANDS = {
    ("decision", "p99_us"): "latency",
    ("decision", "p999_us"): "latency",
    ("outage", ""): "latency",
    ("envoy", ""): "gateways",
    ("nginx", ""): "gateways",
    ("redis", ""): "cost",
    ("memory", ""): "cost",
    ("memory", "start_mib"): "start",
}


def drawn(results: dict[str, Any]) -> str:
    """The picture; a bar's line is the bound, and what was not measured is left out."""
    rows = [(row, float(results[row.part][row.key])) for row in ROWS if row.key in results.get(row.part, {})]
    on = results.get("machine", {})
    height = TOP + ROW * len(rows) + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" {FONT}>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<text x="16" y="24" font-size="16" fill="#202020">Measured, and the bound each number is held to</text>',
        f'<text x="16" y="44" fill="#606060">{escape(_machine(on))}</text>',
    ]
    for place, (row, value) in enumerate(rows):
        y = TOP + place * ROW
        most = max(value, row.bound) * 1.1
        holds = value >= row.bound if row.least else value <= row.bound
        colour = "#3a7d44" if holds else "#b5483a"
        mark = LEFT + BAR * row.bound / most
        shown = f"{value:,.2f}".rstrip("0").rstrip(".") + row.unit
        bound = f"{'at least' if row.least else 'at most'} {row.bound:,g}{row.unit}"
        lines += [
            f'<text x="{LEFT - 10}" y="{y + 14}" text-anchor="end" fill="#202020">{escape(row.says)}</text>',
            f'<rect x="{LEFT}" y="{y + 3}" width="{BAR * value / most:.0f}" height="14" fill="{colour}"/>',
            f'<line x1="{mark:.0f}" y1="{y}" x2="{mark:.0f}" y2="{y + 20}" stroke="#202020" stroke-width="2"/>',
            f'<text x="{LEFT + BAR + 8}" y="{y + 14}" fill="#202020">{shown} ({bound})</text>',
        ]
    return "\n".join((*lines, "</svg>\n"))


def table(results: dict[str, Any]) -> str:
    """The same as rows of Markdown, with the command that measures each."""
    lines = ["| number | measured | bound | command |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        if row.key in results.get(row.part, {}):
            bound = f"{'at least' if row.least else 'at most'} {row.bound:,g}{row.unit}"
            measured = f"{results[row.part][row.key]:,}{row.unit}"
            command = COMMANDS.get((row.part, row.key), COMMANDS.get((row.part, ""), row.part))
            lines.append(f"| {row.says} | {measured} | {bound} | `bench/{command}.py` |")
    return "\n".join(lines)


def _machine(on: dict[str, Any]) -> str:
    return f"{on.get('cores', '?')} cores, {on.get('cpu', '?')}, Python {on.get('python', '?')}; make bench"


def main() -> None:
    picture = RESULTS.with_suffix(".svg")
    results = json.loads(RESULTS.read_text())
    picture.write_text(drawn(results))
    print(f"{table(results)}\n{picture}")


if __name__ == "__main__":
    main()
