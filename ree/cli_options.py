"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda or cuda:N; the result does not depend on it.")]
