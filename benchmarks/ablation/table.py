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
from sifa.data.hard_motion import KINDS

Runs = dict[str, dict[str, list[float]]]
"""Accuracies by configuration and kind of scene."""


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    print(tables(json.loads(parser.parse_args(arguments).json.read_text())))


def tables(report: dict[str, Any]) -> str:
    """All tables of a report, and whether the control holds."""
    runs = by_configuration(report)
    return "\n\n".join([control(runs, report["budget"]), *(markdown(table, runs) for table in TABLES)])


def by_configuration(report: dict[str, Any]) -> Runs:
    """The accuracies in percent: of each configuration those of all clips and of each kind, one per seed."""
    found: Runs = {}
    for run in sorted(report["runs"], key=lambda run: run["seed"]):
        kinds = found.setdefault(run["configuration"], {kind: [] for kind in ("all", *KINDS)})
        for kind, accuracy in {"all": run["top1"], **run["top1_of_kind"]}.items():
            kinds[kind].append(100 * accuracy)
    return found


def control(runs: Runs, budget: dict[str, Any]) -> str:
    """Whether the network that averages over steps stays at 50 %, as it must.

    Raises:
        ValueError: it does not, by more than three standard errors: the clips give the order away.
    """
    if CONTROL not in runs:
        return "The control was not trained."
    top1 = runs[CONTROL]["all"]
    clips = 2 * budget["held_out"] * len(top1)
    mean = statistics.mean(top1)
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


def markdown(table: Table, runs: Runs) -> str:
    """A table: mean and spread (standard deviation over seeds), and the difference to SIFA."""
    lines = [
        f"### {table.title}",
        "",
        f"| | top-1, % | {' | '.join(KINDS)} | seeds | against SIFA |",
        f"|---|---|{'---|' * len(KINDS)}---|---|",
    ]
    nothing: dict[str, list[float]] = {kind: [] for kind in ("all", *KINDS)}
    full = runs.get(FULL, nothing)["all"]
    for title, name in table.rows:
        accuracies = runs.get(name, nothing)
        cells = [title, *(summary(values) for values in accuracies.values()), str(len(accuracies["all"]))]
        cells.append("" if name == FULL else verdict(accuracies["all"], full))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(values: list[float]) -> str:
    """Mean ± spread; the spread of one seed is not known."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def verdict(values: list[float], full: list[float]) -> str:
    """The difference of the means, unless one of the spreads exceeds it."""
    if min(len(values), len(full)) < 2:
        return "too few seeds"
    difference = statistics.mean(values) - statistics.mean(full)
    if abs(difference) <= max(statistics.stdev(values), statistics.stdev(full)):
        return "not distinguishable"
    return f"{difference:+.1f}"


if __name__ == "__main__":
    main()
