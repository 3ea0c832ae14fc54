"""`python -m tools.device`: a CUDA device gives the digests that were made on the CPU.

Exit code 0: every digest is equal; 1: one differs; 2: there is no device that can be trusted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

from blake3 import blake3

from ree.errors import Error
from ree_kernels import cuda
from tools.device import cases

DIGESTS = Path(__file__).resolve().parent / "digests.json"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.device", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of the cases")
    parser.add_argument("--emulate", action="store_true", help="on the emulated device (slow)")
    parser.add_argument("--write", action="store_true", help="make the digests on this processor and write them")
    return parser.parse_args(argv)


def check(quick: bool, known: dict[str, str]) -> list[str]:
    """Names of the cases whose digests differ from what the processor gave, or are not known."""
    wrong = []
    for case in cases.quick() if quick else cases.full():
        start = time.perf_counter()
        found = blake3(case.run("cuda")).hexdigest()
        verdict = "equal" if known.get(case.name) == found else _verdict(case, found)
        if verdict != "equal":
            wrong.append(case.name)
        print(f"{case.name:48} {found[:16]} {time.perf_counter() - start:7.2f} s  {verdict}", flush=True)
    return wrong


def _verdict(case: cases.Case, found: str) -> str:
    """Whether the device is to blame: another version of torch may have made other weights or inputs."""
    here = blake3(case.run("cpu")).hexdigest()
    return "as on this processor, NOT AS COMMITTED" if here == found else "DIFFERENT"


def write() -> dict[str, str]:
    """The digests of all cases, as this processor gives them."""
    every = {case.name: case for case in (*cases.full(), *cases.quick())}
    return {name: blake3(case.run("cpu")).hexdigest() for name, case in every.items()}


def main(argv: list[str] | None = None) -> int:
    """Check or write the digests; see the module's docstring for the exit code."""
    options = _arguments(argv)
    if options.write:
        DIGESTS.write_text(json.dumps(write(), indent=1, sort_keys=True) + "\n")
        return 0
    with contextlib.ExitStack() as stack:
        if options.emulate:
            from tools.emulator import device as emulator

            stack.enter_context(cuda.use(emulator.shared()))
        try:
            wrong = check(options.quick, json.loads(DIGESTS.read_text()))
        except Error as error:
            print(f"device: {error}", file=sys.stderr)
            return 2
    print(f"{len(wrong)} different" + "".join(f"\n  {name}" for name in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
