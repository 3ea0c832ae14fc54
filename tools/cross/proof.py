"""Runs the cases on every processor and compares their bytes with those of this process."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

import ree_kernels.cpu as cpu
from ree.plan.fuse import Kernel
from tools.cross import build
from tools.cross.job import Case, Job
from tools.cross.targets import HOST, CrossError, Processor

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Result:
    """What one processor gave for one case; different: the number of bytes that are not those of this process."""

    processor: str
    case: str
    digest: str
    different: int
    seconds: float

    @property
    def equal(self) -> bool:
        return self.different == 0


def prove(
    cases: Sequence[Case],
    processors: Sequence[Processor],
    threads: Sequence[int] = (2,),
    report: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Every case on every processor, the reference of this process first; CrossError if a tool fails.

    threads: each of these numbers runs a case; what the first one gives that differs is the processor's result.
    """
    results: list[Result] = []

    def add(processor: str, case: Case, got: bytes, want: bytes, seconds: float) -> None:
        results.append(Result(processor, case.name, blake3(got).hexdigest(), _different(got, want), seconds))
        report(results[-1])

    expected = []
    for case in cases:
        start = time.perf_counter()
        expected.append(case.run_here())
        add(reference_name(), case, expected[-1], expected[-1], time.perf_counter() - start)
    kernels: dict[str, Kernel] = {}
    for case in cases:
        kernels.update(case.kernels())
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        jobs = _write_jobs(cases, build.symbols_of(kernels), directory)
        for processor in processors:
            executable = build.build(processor, kernels, directory)
            for case, job, want in zip(cases, jobs, expected, strict=True):
                start = time.perf_counter()
                try:
                    runs = [build.run(processor, executable, job, count, TIMEOUT_S) for count in threads]
                except CrossError as error:
                    raise CrossError(f"{processor.name}, {case.name}: {error}") from None
                given = [case.result(run) for run in dict.fromkeys(runs)]
                got = next((result for result in given if result != want), want)
                add(processor.name, case, got, want, time.perf_counter() - start)
    return results


def reference_name() -> str:
    return f"{HOST} {cpu.kernels().isa} (this process)"


def _write_jobs(cases: Sequence[Case], symbols: Sequence[str], directory: Path) -> list[Path]:
    paths = []
    for number, case in enumerate(cases):
        path = directory / f"{number}.job"
        path.write_bytes(Job(case, symbols).encode())
        paths.append(path)
    return paths


def _different(got: bytes, want: bytes) -> int:
    return abs(len(got) - len(want)) + sum(a != b for a, b in zip(got, want, strict=False)) if got != want else 0


def summary(results: Sequence[Result], processors: Sequence[Processor]) -> dict[str, Any]:
    """The results as JSON: the digest of every case here, and for each processor where it differs."""
    tools = {p.name: [_version(command) for command in (p.tool("gcc"), *p.emulator[:1])] for p in processors}
    seen: dict[str, dict[str, Any]] = {}
    for result in results:
        entry = seen.setdefault(result.processor, {"cases": 0, "equal": 0, "seconds": 0.0, "different": {}})
        entry["cases"] += 1
        entry["equal"] += result.equal
        entry["seconds"] = round(entry["seconds"] + result.seconds, 3)
        if not result.equal:
            entry["different"][result.case] = {"digest": result.digest, "bytes": result.different}
    return {
        "equal": all(result.equal for result in results),
        "reference": reference_name(),
        "digests": {result.case: result.digest for result in results if result.processor == reference_name()},
        "processors": {name: {**entry, "tools": tools.get(name, [])} for name, entry in seen.items()},
    }


def _version(command: str) -> str:
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
