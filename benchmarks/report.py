"""What the benchmark of the operator prints: its tables, in Markdown, and what they say to its aims."""

from __future__ import annotations

import statistics

from cases import BLOCK_RIVALS, COMPILED, CUDA_CASES, GRID, RIVALS, TORCH_BLOCK
from contest import BOTH, FORWARD, ONE_THREAD, OPERATOR, PASSES, ZERO
from measuring import NOT_MEASURED, quartiles, ratios, significant, spread


def markdown(columns: list[str], lines: list[list[str]]) -> str:
    """A Markdown table, its columns aligned for a reader of the text."""
    widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
    rows = [columns, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def time_table(rows: list[dict], on_cuda: bool) -> str:
    """The operator (or the block) against the floor."""
    columns = ["case", "N×C×T×H×W", "dtype", "k", "σ", "pass", "ms", *(["launch ms"] if on_cuda else [])]
    columns += [
        "bytes, MB",
        "tap bytes, MB",
        "inside",
        "Gop",
        "floor, ms",
        "set by",
        "time / floor",
        "peak, MB",
    ]
    lines = []
    for row in rows:
        for which, entry in row["passes"].items():
            work = entry["work"]
            launch = [significant(entry["launch_ms"][OPERATOR])] if on_cuda else []
            lines.append(
                [
                    row["case"],
                    "×".join(map(str, row["shape"])),
                    row["dtype"],
                    str(row["kernel_size"]),
                    f"{row['sigma']:g}",
                    which,
                    significant(entry["times_ms"][OPERATOR]["rounds"]),
                    *launch,
                    f"{work['bytes'] / 1e6:.1f}",
                    f"{work['full_tap_bytes'] / 1e6:.0f}",
                    f"{work['tap_bytes'] / work['full_tap_bytes']:.0%}",
                    f"{work['operations'] / 1e9:.2f}",
                    significant(entry["floor_ms"]),
                    entry["floor_set_by"],
                    spread(entry["time_over_floor"]["rounds"], 2),
                    megabytes(entry["peak_bytes"].get(OPERATOR, NOT_MEASURED)),
                ]
            )
    return markdown(columns, lines)


def ratio_table(rows: list[dict], names: list[str], notes: list[str]) -> str:
    """How many times the operator's time (and peak memory) its rivals take. Adds to the notes."""
    lines = []
    for row in rows:
        for which, entry in row["passes"].items():
            cells = [row["case"], which]
            for name in names:
                if name in entry["ratios"]:
                    cell = spread(entry["ratios"][name]["rounds"], 2)
                    peaks = [entry["peak_bytes"].get(each, "") for each in (name, OPERATOR)]
                    if name != OPERATOR and comparable(*peaks):
                        cell += f", memory {peaks[0] / peaks[1]:.1f}"
                else:
                    reason = entry["not_measured"].get(name, "not a part of this case")
                    if reason not in notes:
                        notes.append(reason)
                    cell = f"{NOT_MEASURED} [{notes.index(reason) + 1}]"
                cells.append(cell)
            lines.append(cells)
    return markdown(["case", "pass", *names], lines)


def comparable(*peaks: int | str) -> bool:
    """Whether peaks of memory were measured, and more than a page."""
    return all(isinstance(peak, int) and peak > 0 for peak in peaks)


def megabytes(peak: int | str) -> str:
    """Bytes as a cell."""
    return f"{peak / 1e6:.1f}" if isinstance(peak, int) else peak


# --- What is claimed --------------------------------------------------------------------------------------


def claims(rows: list[dict]) -> list[dict]:
    """The aims, and what the cases that they are about say to them: base and block on a CPU, CUDA_CASES."""
    by_name = {row["case"]: row["passes"] for row in rows}
    found: list[dict] = []

    def claim(what: str, relation: str, aim: float, values: list[float]) -> None:
        if values:
            median = statistics.median(values)
            holds = median <= aim if relation == "≤" else median >= aim
            found.append(
                {"claim": what, "aim": f"{relation} {aim:g}", "quartiles": quartiles(values), "holds": holds}
            )

    for name, passes in by_name.items():
        if name not in {case.name for case in CUDA_CASES}:
            continue
        own, both = (passes[which]["times_ms"][OPERATOR]["rounds"] for which in PASSES)
        aim = 1.6 if "90x160" in name else 2
        claim(f"{name}: forward over its floor", "≤", aim, passes[FORWARD]["time_over_floor"]["rounds"])
        claim(f"{name}: forward and backward over forward", "≤", 5, ratios(both, own))
        for which, mine in ((FORWARD, own), (BOTH, both)):
            rival = passes[which]["times_ms"].get(COMPILED, {"rounds": []})["rounds"]
            claim(f"{name}: {COMPILED}, over the operator, {which}", "≥", 5, ratios(rival, mine))
    if any(row["device"] != "cpu" for row in rows):
        return found
    base = by_name.get("base")
    if base:

        def times(name: str, which: str) -> list[float]:
            return base[which]["times_ms"].get(name, {"rounds": []})["rounds"]

        def peaks(name: str) -> int | str:
            return base[BOTH]["peak_bytes"].get(name, NOT_MEASURED)

        own, both = times(OPERATOR, FORWARD), times(OPERATOR, BOTH)
        claim("forward over its floor", "≤", 2, base[FORWARD]["time_over_floor"]["rounds"])
        claim("grid_sample over the operator, forward", "≥", 70, ratios(times(GRID, FORWARD), own))
        claim("zero offsets over σ = 1, forward", "≤", 1, ratios(times(ZERO, FORWARD), own))
        claim("bfloat16 over float32, forward", "≤", 1, ratios(times(f"{OPERATOR}, bfloat16", FORWARD), own))
        claim("forward and backward over forward", "≤", 6, ratios(both, own))
        claim("grid_sample over the operator, forward and backward", "≥", 25, ratios(times(GRID, BOTH), both))
        if comparable(peaks(GRID), peaks(OPERATOR)):
            memory = [peaks(GRID) / peaks(OPERATOR)]
            claim("grid_sample's peak memory over the operator's, forward and backward", "≥", 6, memory)
        alone = "1 thread over all threads, "
        claim(alone + FORWARD, "≥", 1.8, ratios(times(ONE_THREAD, FORWARD), own))
        claim(alone + BOTH, "≥", 1.8, ratios(times(ONE_THREAD, BOTH), both))
    block = by_name.get("block-128")
    if block:
        inverse = [1 / ratio for ratio in block[FORWARD]["ratios"][TORCH_BLOCK]["rounds"]]
        claim("the SIFA block over the same block of torch's operators, eager, forward", "≤", 0.4, inverse)
    return found


def report(found: list[dict], rows: list[dict], device: str) -> str:
    """Everything as Markdown."""
    on_cuda = device != "cpu"
    attention = [row for row in rows if row["kind"] != "block"]
    blocks = [row for row in rows if row["kind"] == "block"]
    notes: list[str] = []
    parts = [
        "Medians (quartiles) over the rounds. 'tap bytes' are those of all corners; 'inside' is the share of "
        "them that counts: in the frame, and not multiplied by 0. 'peak' is memory beside the inputs.",
        time_table(rows, on_cuda),
    ]
    if attention:
        parts += ["Times the operator's time, in the same round (and times its peak memory):"]
        parts += [ratio_table(attention, list(RIVALS), notes)]
        variants = [row for row in attention if row["variants"]]
        names = list(dict.fromkeys(n for row in variants for n in row["passes"][FORWARD]["ratios"]))
        names = [name for name in names if name.startswith(OPERATOR) and name != OPERATOR]
        if names:
            parts += ["The operator under other conditions, times its time in the same round:"]
            parts += [ratio_table(variants, names, notes)]
    if blocks:
        parts += [
            "Times the time of the eager block `sifa.SIFA`:",
            ratio_table(blocks, list(BLOCK_RIVALS), notes),
        ]
    if notes:
        parts += ["\n".join(f"[{number}] {note}  " for number, note in enumerate(notes, 1))]
    parts += ["Not measured: other combinations of shape, dtype, batch, T, k and offsets than those above."]
    if found:
        lines = [
            [c["claim"], c["aim"], significant(c["quartiles"]), "yes" if c["holds"] else "no"] for c in found
        ]
        parts += [markdown(["claim", "aim", "measured", "holds"], lines)]
    return "\n\n".join(parts)
