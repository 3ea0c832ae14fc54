"""What the benchmark scripts share: arguments, results as JSON, tables in Markdown."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

if str(ROOT) not in sys.path:  # the scripts run as `python benchmarks/NAME.py`
    sys.path.insert(0, str(ROOT))


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every script has."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smallest models and few runs; writes nothing by default")
    parser.add_argument("--output", type=Path, help="folder for the results (default: benchmarks/results)")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def write(name: str, result: dict[str, Any], options: argparse.Namespace) -> Path | None:
    """Write NAME.json with the machine and the date; a quick run writes only if told where."""
    from ree import measure

    if options.quick and options.output is None:
        return None
    folder = options.output or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "date": datetime.date.today().isoformat(),
        "machine": measure.machine(),
        "threads": options.threads,
        "quick": options.quick,
        **result,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, first column to the left, others to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
