"""`ree serve`: a language model behind OpenAI's API, many requests at once, each answer with a receipt."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from ree.cli_options import Device
from ree.errors import InputError

PORT = 8000
SLOTS = 8
WAITING = 256
KEY_VARIABLE = "REE_API_KEY"
KEY_BYTES_MAX = 4096
SECONDS_MAX = 7 * 86400.0
DAY_S = 86400.0


def add_to(root: typer.Typer) -> None:
    """Hang the command into the command line."""
    root.command("serve")(serve)


def serve(
    model: Annotated[Path, typer.Option("--model", "-m", help="A Hugging Face model folder.")],
    host: Annotated[str, typer.Option(help="Address to listen at; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = PORT,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; else that of the folder.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or int8; else as the folder's weights are.")] = None,
    slots: Annotated[int, typer.Option(min=1, max=1024, help="Requests that run at once.")] = SLOTS,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of a request; else all the model knows.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one step at most; fewer make streams even.")
    ] = None,
    waiting: Annotated[int, typer.Option(min=0, max=10_000, help="Requests that may wait for a slot.")] = WAITING,
    timeout: Annotated[float, typer.Option(min=0.1, max=SECONDS_MAX, help="Seconds for a request.")] = 600.0,
    drain: Annotated[float, typer.Option(min=0.0, max=SECONDS_MAX, help="Seconds for what runs at SIGTERM.")] = 30.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; the result does not depend on them.")] = None,
    device: Device = "cpu",
    api_key_file: Annotated[Path | None, typer.Option(help=f"File with the API key; else ${KEY_VARIABLE}.")] = None,
    sign: Annotated[Path | None, typer.Option(help="Private key (Ed25519, PEM); yours by default.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="SQLite file of receipts; else in the user's state folder.")
    ] = None,
    keep_receipts: Annotated[int, typer.Option(min=1, help="Receipts that are kept, the newest.")] = 100_000,
    keep_days: Annotated[float | None, typer.Option(min=0.001, help="Days that a receipt is kept.")] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts and answers to the log.")] = False,
) -> None:
    """Serve a language model over HTTP (OpenAI's API); SIGTERM finishes what runs, then ends it."""
    _require_packages()
    import ree
    from ree import signing
    from ree.lm.model import LanguageModel
    from ree.lm.serve.loaded import Loaded
    from ree.lm.serve.log import Log
    from ree.lm.serve.run import Server, bind
    from ree.lm.serve.service import Service
    from ree.lm.serve.store import Store

    if threads is not None:
        ree.threads(threads)
    log = Log(prompts=log_prompts)
    key = api_key(api_key_file)
    signer = signing.signer_or_own(sign)
    kept = Store(store or default_store(), keep_receipts, None if keep_days is None else keep_days * DAY_S)
    bound = bind(host, port)  # before the model, whose loading takes long
    loaded = LanguageModel.open(model, dtype, lambda what: log.line("loading", step=what), device=device)
    served = Loaded(loaded, loaded.engine(slots, context), signer, name or model.resolve().name)
    service = Service(served, kept, log, waiting, timeout, rows_max=rows)
    log.line("model", name=served.name, dtype=loaded.dtype, context=served.engine.context, slots=slots, **served.ids)
    server = Server(service, bound, key, drain)
    if not server.is_local and key is None:
        log.line("warning", message=f"anyone who reaches {server.url} may use it: there is no API key")
    server.run()


def api_key(file: Path | None) -> str | None:
    """The API key of a file or of the environment, None if there is none. InputError: it is no key."""
    if file is None:
        text = os.environ.get(KEY_VARIABLE)
        where = f"${KEY_VARIABLE}"
    else:
        where = str(file)
        try:
            with file.open("rb") as opened:
                text = opened.read(KEY_BYTES_MAX + 1).decode("utf-8", "replace").strip()
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from None
    if text is None:
        return None
    if not re.fullmatch(f"[!-~]{{8,{KEY_BYTES_MAX}}}", text):
        raise InputError(f"{where}: an API key is one word of at least 8 printable ASCII characters")
    return text


def default_store() -> Path:
    """`ree/receipts.sqlite` in the user's state folder."""
    state = os.environ.get("XDG_STATE_HOME", "") or Path.home() / ".local" / "state"
    return Path(state) / "ree" / "receipts.sqlite"


def _require_packages() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise InputError("serving needs starlette and uvicorn: pip install 'ree[serve]'") from None
