"""The records of `scripts/benchmark_gpu.py` as text."""

from __future__ import annotations

import statistics
from typing import Any

Record = dict[str, Any]
HEADS = ("", "batch", "largest", "images/s", "x torchvision", "GiB", "TFLOP/s", "of peak")
WIDTHS = (47, 6, 8, 9, 13, 6, 8, 8)


def rows(records: list[Record]) -> list[Record]:
    """One row for each part that was timed: at its best batch, medians over the rounds."""
    peaks = [r["matrix_tflops"] for r in records if "matrix_tflops" in r]
    timed_parts = []
    for name in dict.fromkeys(r["part"] for r in records if r["of"]["kind"] in ("train", "infer")):
        timed = [r for r in records if r["part"] == name and "images_per_second" in r]
        if not timed:
            continue
        first = [r for r in timed if r["round"] == 1] or timed
        top = max(first, key=lambda r: r["images_per_second"])
        same = [r for r in timed if r["batch"] == top["batch"]]
        tflops = [r["tflops"] for r in same if r["tflops"] is not None]
        held = [r["peak_bytes"] for r in same if r["peak_bytes"] is not None]
        timed_parts.append(
            {
                "part": name,
                "of": top["of"],
                "batch": top["batch"],
                "largest": max(r["batch"] for r in timed),
                "memory_ended": any(r["part"] == name and r.get("out_of_memory") for r in records),
                "by_round": {r["round"]: r["images_per_second"] for r in same},
                "images_per_second": statistics.median(r["images_per_second"] for r in same),
                "gib": min(held) / 2**30 if held else None,
                "tflops": statistics.median(tflops) if tflops else None,
                "of_peak": statistics.median(tflops) / max(peaks) if tflops and peaks else None,
            }
        )
    for row in timed_parts:
        row["ratio"] = _ratio(row, timed_parts)
    return timed_parts


def _ratio(row: Record, all_rows: list[Record]) -> float | None:
    """Median over the rounds of our rate by torchvision's of the same work."""
    of = row["of"]
    if of["who"] != "retina":
        return None
    for other in all_rows:
        theirs = other["of"]
        same_work = all(theirs[key] == of[key] for key in ("kind", "canvas", "frozen"))
        if same_work and theirs["who"] == "torchvision" and not theirs["compiled"]:
            both = row["by_round"].keys() & other["by_round"].keys()
            return statistics.median(row["by_round"][n] / other["by_round"][n] for n in both) if both else None
    return None


def table(records: list[Record]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        f"{r['of']['who']} on {r['device']}: {r['matrix_tflops']:.4g} TFLOP/s in a matrix product, "
        f"{r['convolution_tflops']:.4g} in a convolution, {r['copy_gb_per_second']:.4g} GB/s in a copy"
        for r in records
        if "matrix_tflops" in r
    ]
    timed = rows(records)
    if timed:
        lines += ["", _line(HEADS)]
    for row in timed:
        largest = f"{row['largest']}{'' if row['memory_ended'] else '+'}"
        cells = (
            row["part"],
            str(row["batch"]),
            largest,
            cell(row["images_per_second"], ".4g"),
            cell(row["ratio"], ".3f"),
            cell(row["gib"], ".1f"),
            cell(row["tflops"], ".4g"),
            cell(row["of_peak"], ".1%"),
        )
        lines.append(_line(cells))
    # One part answers before its evaluation and after it.
    trained = {(r["part"], r["round"]): r for r in records if "fed_images_per_second" in r}
    for record in records:
        if "parts" in record:
            lines += ["", *_profile(record)]
        elif "operations" in record:
            lines += ["", f"{record['part']}, batch {record['batch']}: the busiest kernels", *_busiest(record)]
        if "gradient_check" in record:
            lines.append(
                f"gradient check {record['gradient_check']}: {record['relative_error']:.2g} ({record['worst']})"
            )
        if record is trained.get((record["part"], record["round"])):
            lines += ["", _trained(record)]
    for key, words in (("error", "failed"), ("skipped", "left out"), ("not_run", "not run")):
        lines += [f"{words}: {r['part']}, round {r['round']}: {r[key]}" for r in records if key in r]
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    first, *others = (
        f"{c:<{w}}" if place == 0 else f"{c:>{w}}" for place, (c, w) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return " ".join([first, *others]).rstrip()


def _profile(record: Record) -> list[str]:
    step = record["parts"]["step"]
    lines = [f"{record['part']}, batch {record['batch']}: a step takes {1e3 * step:.4g} ms, of which (compiled apart)"]
    lines += [
        f"  {name.replace('_', ' '):<24} {1e3 * value:>9.4g} ms {value / step:>7.1%}"
        for name, value in record["parts"].items()
        if name != "step"
    ]
    lines.append(
        f"  convolutions {record['tflop']:.4g} TFLOP (XLA's estimate of everything: {record['xla_tflop']:.4g}), "
        f"XLA's bytes {record['xla_gigabytes']:.4g} GB"
    )
    share = record["suppression_share_of_inference"]
    lines.append("  decoding and suppression" + ("" if share is None else f" take {share:.1%} of inference"))
    return lines + _busiest(record)


def _busiest(record: Record) -> list[str]:
    return [
        f"  {o['share']:>6.1%} {o['milliseconds']:>9.4g} ms {o['calls']:>8.4g} x {o['name'][:90]}"
        for o in record["operations"][:15]
    ]


def _trained(record: Record) -> str:
    speed, waiting, metrics = record["fed_images_per_second"], record["waiting_for_data"], record["metrics"]
    words = [f"{record['part']}: {record['steps']} steps of {record['batch']} in {record['wall_seconds']:.0f} s"]
    if speed is not None:
        words.append(f"{speed:.4g} images/s")
    if waiting is not None:
        words.append(f"{waiting:.1%} of the time waiting for data")
    if metrics is not None:
        words.append(f"validation AP {metrics['AP']:.4f}, AP50 {metrics['AP50']:.4f}")
    return ", ".join(words)
