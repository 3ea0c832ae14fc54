"""Figures of a running server in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ree.lm.batch import Watch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Histogram:
    """Counts of values up to each of some bounds, ascending."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum!r}"
        yield f"{name}_count {total}"


class Metrics(Watch):
    """Counts what the scheduler and the server tell, from any thread. `told` also hears of faults."""

    def __init__(self, told: Callable[[str, Exception], None] | None = None) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._faults: Counter[str] = Counter()
        self._read = self._drawn = self._receipts = 0
        self._histograms = {
            "ree_step_seconds": (Histogram(STEP_S), "Time of one step of the engine."),
            "ree_step_rows": (Histogram(ROWS), "Tokens fed in one step of the engine."),
            "ree_first_token_seconds": (Histogram(FIRST_TOKEN_S), "From a request to its first token."),
        }

    def step(self, seconds: float, rows: int) -> None:
        with self._lock:
            self._histograms["ree_step_seconds"][0].add(seconds)
            self._histograms["ree_step_rows"][0].add(rows)

    def first_token(self, seconds: float) -> None:
        with self._lock:
            self._histograms["ree_first_token_seconds"][0].add(seconds)

    def tokens(self, read: int, drawn: int) -> None:
        with self._lock:
            self._read += read
            self._drawn += drawn

    def fault(self, where: str, error: Exception) -> None:
        with self._lock:
            self._faults[where] += 1
        if self._told is not None:
            self._told(where, error)

    def request(self, endpoint: str, status: int) -> None:
        """One request was answered; 499: its client left before that."""
        with self._lock:
            self._requests[endpoint, status] += 1

    def receipt(self) -> None:
        """One receipt was kept."""
        with self._lock:
            self._receipts += 1

    def text(self, waiting: int, running: int) -> str:
        """All figures; `waiting` and `running` are those of this moment."""
        with self._lock:
            requests = [
                f'ree_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}'
                for (endpoint, status), count in sorted(self._requests.items())
            ]
            faults = [f'ree_faults_total{{where="{w}"}} {n}' for w, n in sorted(self._faults.items())]
            lines = [
                *_family("ree_requests_total", "counter", "Requests by endpoint and status.", requests),
                *_single("ree_prompt_tokens_total", "counter", "Tokens of prompts that were read.", self._read),
                *_single("ree_completion_tokens_total", "counter", "Tokens that were drawn.", self._drawn),
                *_single("ree_receipts_total", "counter", "Receipts that were kept.", self._receipts),
                *_family("ree_faults_total", "counter", "What failed and never should.", faults),
                *_single("ree_waiting", "gauge", "Requests that wait for a slot.", waiting),
                *_single("ree_running", "gauge", "Requests that have a slot.", running),
            ]
            for name, (histogram, meaning) in self._histograms.items():
                lines += _family(name, "histogram", meaning, histogram.lines(name))
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, meaning: str, lines: Iterable[str]) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *lines]


def _single(name: str, kind: str, meaning: str, value: int) -> list[str]:
    return _family(name, kind, meaning, [f"{name} {value}"])
