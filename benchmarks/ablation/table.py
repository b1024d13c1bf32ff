"""Makes the tables of the ablation from what run.py has written, as Markdown.

python benchmarks/ablation/table.py build/ablation.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from configurations import CONTROL, FULL, TABLES, Table


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    print(tables(json.loads(parser.parse_args(arguments).json.read_text())))


def tables(report: dict[str, Any]) -> str:
    """All tables of a report, and whether the control holds."""
    found = accuracies(report)
    return "\n\n".join([control(found, report["budget"]), *(markdown(table, found) for table in TABLES)])


def accuracies(report: dict[str, Any]) -> dict[str, list[float]]:
    """The top-1 accuracies of each configuration in percent, one for each seed."""
    found: dict[str, list[float]] = {}
    for run in sorted(report["runs"], key=lambda run: run["seed"]):
        found.setdefault(run["configuration"], []).append(100 * run["top1"])
    return found


def control(found: dict[str, list[float]], budget: dict[str, Any]) -> str:
    """Whether the network that averages over steps stays at 50 %, as it must.

    Raises:
        ValueError: it does not, by more than three standard errors: the clips give the order away.
    """
    if CONTROL not in found:
        return "The control was not trained."
    clips = 2 * budget["held_out"] * len(found[CONTROL])
    mean = statistics.mean(found[CONTROL])
    limit = 50 + 300 * math.sqrt(0.25 / clips)
    if mean > limit:
        raise ValueError(
            f"the control reaches {mean:.1f} %, and without relating steps nothing can reach more than "
            f"{limit:.1f} %: the clips give the order away"
        )
    return (
        f"The control holds: a network that averages over steps reaches {mean:.1f} %; three standard errors "
        f"of {clips} answers allow {limit:.1f} %."
    )


def markdown(table: Table, found: dict[str, list[float]]) -> str:
    """A table: mean and spread (standard deviation over seeds), and the difference to SIFA."""
    lines = [
        f"### {table.title}",
        "",
        "| | top-1, % | seeds | against SIFA |",
        "|---|---|---|---|",
    ]
    for title, name in table.rows:
        values = found.get(name, [])
        cells = [title, summary(values), ", ".join(f"{value:.1f}" for value in values)]
        lines.append(f"| {' | '.join([*cells, verdict(values, found.get(FULL, []), name == FULL)])} |")
    return "\n".join(lines)


def summary(values: list[float]) -> str:
    """Mean ± spread; the spread of one seed is not known."""
    if not values:
        return "not trained"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def verdict(values: list[float], full: list[float], itself: bool) -> str:
    """The difference of the means, unless one of the spreads exceeds it."""
    if itself:
        return ""
    if min(len(values), len(full)) < 2:
        return "too few seeds"
    difference = statistics.mean(values) - statistics.mean(full)
    if abs(difference) <= max(statistics.stdev(values), statistics.stdev(full)):
        return "not distinguishable"
    return f"{difference:+.1f}"


if __name__ == "__main__":
    main()
