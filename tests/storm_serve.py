"""Clients who leave at every moment: before, in and after their requests. Nothing of them may stay behind.

`python -m tests.storm_serve COUNT [SEED]` sends COUNT such clients and prints what is left of them; the seed is
printed. `storm` and `Left` give it to the suite.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from tests.lm_fakes import END, FakeEngine, FakeModel
from tests.serve_case import RESET, Running, open_files, request_bytes, resident_bytes, serving, until

AT_ONCE = 64
GROWN_BYTES_MAX = 32 << 20  # of memory in a long storm; one answer kept from each client would be more


@dataclass(frozen=True)
class Left:
    """What a process holds."""

    threads: int
    files: int
    resident_bytes: int

    @classmethod
    def now(cls) -> Left:
        return cls(threading.active_count(), open_files(), resident_bytes())


def body(rng: random.Random) -> dict[str, Any]:
    """A request that would run for long, now and then a short or a wrong one."""
    if rng.random() < 0.05:
        return {"model": "fake", "prompt": 3}
    return {
        "model": "fake",
        "prompt": "a" * rng.choice([1, 30, 500]),
        "max_tokens": rng.choice([1, 20, 3000, 3000]),
        "logit_bias": {str(END): -100},
        "stream": rng.random() < 0.6,
    }


async def client(rng: random.Random, host: str, port: int) -> str:
    """One client; what it did."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return "not connected"
    data = request_bytes(body(rng))
    deed = rng.choice(["nothing", "half", "whole", "whole", "read", "read", "answer"])
    try:
        if deed == "half":
            writer.write(data[: rng.randrange(1, len(data))])
        elif deed != "nothing":
            writer.write(data)
        await writer.drain()
        await asyncio.sleep(rng.choice([0, 0, 0.001, 0.02]))
        if deed == "read":
            await reader.read(rng.choice([1, 100, 5000]))
        elif deed == "answer":
            await asyncio.wait_for(reader.read(1 << 20), 0.05)
    except (OSError, TimeoutError):
        pass
    finally:
        if rng.random() < 0.5:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.close()
    return deed


def storm(running: Running, count: int, seed: int) -> Counter[str]:
    """Send `count` clients, AT_ONCE of them at a time, and wait until nothing runs."""
    rng = random.Random(seed)
    deeds: Counter[str] = Counter()

    async def worker(own: random.Random, share: int) -> None:
        for _ in range(share):
            deeds[await client(own, running.server.host, running.server.port)] += 1

    async def everyone() -> None:
        shares = [count // AT_ONCE + (n < count % AT_ONCE) for n in range(AT_ONCE)]
        await asyncio.gather(*(worker(random.Random(rng.random()), share) for share in shares))

    asyncio.run(everyone())
    until(running.is_idle, "idleness")
    return deeds


def model() -> FakeModel:
    return FakeModel(FakeEngine(slots=8, context=4096, rows_max=32), asked=deque(maxlen=1))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"{count} clients, seed {seed}")
    with serving(model(), waiting_max=32) as running:
        storm(running, max(1, count // 10), seed)  # caches and pools fill
        running.forget_log()
        before, began = Left.now(), time.monotonic()
        deeds = storm(running, count, seed + 1)
        statuses = Counter(line.get("status") for line in running.lines if line["event"] == "request")
        faults = [line for line in running.lines if line["event"] == "fault"]
        running.forget_log()
        until(lambda: Left.now().files <= before.files, "closing of connections")
        after = Left.now()
        print(f"{time.monotonic() - began:.1f} s; deeds {dict(deeds)}; statuses {dict(statuses)}")
        print(f"before {before}\nafter  {after}")
        assert not faults, faults[:3]
        assert after.threads <= before.threads and after.files <= before.files
        assert after.resident_bytes - before.resident_bytes < GROWN_BYTES_MAX
        status, found, _ = running.post({"model": "fake", "prompt": "a", "max_tokens": 3})
        assert status == 200 and found["ree_receipt"]
    print("nothing of them is left")


if __name__ == "__main__":
    main()
