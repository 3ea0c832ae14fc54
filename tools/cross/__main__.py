"""`python -m tools.cross`: other processors give the bits of this one, shown under qemu-user.

Exit code 0: every digest is equal; 1: one differs; 2: a tool is missing or fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.cross import targets
from tools.cross.job import Case
from tools.cross.proof import Result, prove, summary
from tools.cross.targets import QUICK, CrossError


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.cross", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of the cases, in about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2, 3], help="every case runs on each of these numbers of threads"
    )
    return parser.parse_args(argv)


def _cases(quick: bool) -> list[Case]:
    # torch is imported once it is known to be needed
    from tools.cross import committed, draws, elements, language, models, streamed

    if quick:
        whole = [*models.quick(), *language.quick()]
        return [*elements.quick(), *whole, *committed.quick(whole), *streamed.quick(), draws.draws()]
    whole = [*models.full(), *language.full()]
    return [*elements.full(), *whole, language.wrong_expert(), *committed.full(whole), *streamed.full(), draws.draws()]


def _show(result: Result) -> None:
    verdict = "equal" if result.equal else f"DIFFERENT in {result.different} bytes"
    print(f"{result.processor:32} {result.case:36} {result.digest[:16]} {result.seconds:7.2f} s  {verdict}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Prove all cases; see the module's docstring for the exit code."""
    options = _arguments(argv)
    try:
        processors = QUICK if options.quick else targets.processors()
        lacking = targets.missing(processors)
        if lacking:
            raise CrossError(lacking)
        cases = _cases(options.quick)
        results = prove(cases, processors, options.threads, _show)
    except CrossError as error:
        print(f"cross: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(summary(results, processors), indent=1) + "\n")
    wrong = [result for result in results if not result.equal]
    print(f"{len(results)} runs of {len(cases)} cases, {len(wrong)} different")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
