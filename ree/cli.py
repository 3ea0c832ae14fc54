"""The command line: thin, every command with --json.

Exit code 0: good; 1: a verification failed; 2: bad usage or bad input, with one line on
standard error.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from ree import cli_dispute, cli_generate, cli_proof, cli_receipt, cli_serve
from ree.cli_options import Device
from ree.errors import Error, InputError, VerificationError

FAILED, BAD = 1, 2
ROUNDS_MAX = 10_000

app = typer.Typer(
    name="ree",
    help="Deterministic compiler for PyTorch models: the same bits on every processor.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console(width=None if sys.stdout and sys.stdout.isatty() else 140)  # None: it is closed

# The root of click's errors; typer carries a copy of click, whose place differs between its versions.
_USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads; the result does not depend on them.")]
Model = Annotated[str, typer.Argument(help="A .pt2 file, a Hugging Face model folder, or FILE.py:FACTORY.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import ree

        print(ree.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(BAD)


@app.command()
def compile(
    source: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .ree file to write.")],
    cache: Annotated[bool, typer.Option(help="Take it from the cache if it was compiled before, and keep it.")] = True,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compile a model to a .ree file."""
    from ree import program_cache, sources
    from ree.device.backend import backend_of

    backend_of(device)  # first, since it is cheap
    with _status("reading the files") as status:
        files = sources.of(source, options={}) if cache else None
        found = program_cache.restore(files, output) if files else None
        summary = found or _compile(source, output, status)
        if files and not found:
            program_cache.remember(files, output, summary)
        _warm(output, device, status)
    result = {"file": str(output), "bytes": output.stat().st_size, **summary, "cached": found is not None}
    _print(result, as_json, f"{output}: {result['bytes']:,} bytes, program {result['program_id']}")


def _warm(output: Path, device: str, status: Status) -> None:
    """Compile the kernels of another device, too: they are found in the cache when the file is run there."""
    if device == "cpu":
        return
    import ree
    from ree.inspection import binding_of

    status.update(f"compiling kernels for {device}")
    program = ree.load(output, device)
    program.plan(tuple(binding_of(program.graph, {}).values())).compile()


def _compile(source: str, output: Path, status: Status) -> dict[str, Any]:
    """Compile and write; what `ree compile` tells about the program."""
    import ree
    from ree import loaders
    from ree.peers import silence

    status.update("loading the model")
    loaded = loaders.load(source)
    status.update("compiling")
    with silence():  # torch.export prints what it traced
        program = ree.compile(loaded.model, loaded.example_inputs, loaded.dynamic_shapes)
    status.update("writing")
    program.save(output)
    return {
        "program_id": program.program_id.hex(),
        "inputs": {i.name: str(i.type) for i in program.graph.inputs},
    }


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A .ree file.")],
    inputs: Annotated[Path, typer.Option("--input", "-i", help="safetensors file; keys are the input names.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="safetensors file to write.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; the result does not depend on them.")] = None,
    device: Device = "cpu",
    expect: Annotated[str | None, typer.Option(help="Digest of the outputs; exit code 1 if it differs.")] = None,
    commit: Annotated[bool, typer.Option("--commit", help="Commit to every result: print the trace root.")] = False,
    trace_file: Annotated[Path | None, typer.Option("--trace", help="Trace file to write; commits, too.")] = None,
    roots_only: Annotated[bool, typer.Option("--roots-only", help="Without results in the trace file.")] = False,
    sign: Annotated[Path | None, typer.Option(help="Private key (Ed25519, PEM) that signs a receipt.")] = None,
    receipt: Annotated[Path | None, typer.Option(help="Receipt to write; its salt goes beside it.")] = None,
    nonce: Annotated[str | None, typer.Option(help="64 hex digits of whoever wants the receipt.")] = None,
    as_json: Json = False,
) -> None:
    """Run a .ree file on the tensors of a safetensors file."""
    import ree
    from ree import measure, tensors
    from ree.signing import Signing

    signing = Signing.of(sign, receipt, nonce)
    if roots_only and trace_file is None:
        raise InputError("--roots-only goes with --trace FILE")
    if expect is not None and not re.fullmatch(r"[0-9a-fA-F]{32}", expect):
        raise InputError(f"--expect takes the 32 hexadecimal digits that a run prints, not {expect!r}")
    if threads is not None:
        ree.threads(threads)
    program = ree.load(file, device)
    given = tensors.program_inputs(program, tensors.read(inputs))
    if commit or signing or trace_file:
        results, trace = program.run_committed(given, keep=trace_file is not None and not roots_only)
    else:
        results, trace = program.run_flat(given), None
    named = tensors.program_outputs(program, results)
    digest = measure.digest([array for array, _ in named.values()])
    if output is not None:
        tensors.write(output, named)
    if expect is not None and expect.lower() != digest:
        raise VerificationError(f"the outputs' digest is {digest}, expected {expect}")
    result = {
        "digest": digest,
        "outputs": {n: {"dtype": d.value, "shape": list(a.shape)} for n, (a, d) in named.items()},
    }
    lines = [f"{n}: {d.value}{list(a.shape)}" for n, (a, d) in named.items()] + [f"digest {digest}"]
    if trace is not None:
        result["trace_root"] = trace.root.hex()
        lines.append(f"trace root {trace.root.hex()}")
    if trace is not None and trace_file is not None:
        trace.save(trace_file, tensors=not roots_only)
        result["trace"] = str(trace_file)
        lines.append(f"trace {trace_file}")
    if signing and trace:
        result |= signing.write(trace)
        lines.append(f"receipt {receipt}")
    _print(result, as_json, "\n".join(lines))


@app.command()
def verify(
    receipt: Annotated[Path, typer.Argument(help="A receipt, as `ree run` or `ree generate` writes it.")],
    file: Annotated[Path | None, typer.Argument(help="The .ree file that it is about.")] = None,
    inputs: Annotated[
        Path | None, typer.Option("--input", "-i", help="safetensors file; keys are the input names.")
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", "-m", help="The model folder of a generation.")] = None,
    prompt: cli_generate.Prompt = None,
    prompt_file: cli_generate.PromptFile = None,
    dtype: cli_generate.Dtype = None,
    step: Annotated[int | None, typer.Option(min=0, help="Of a generation only this token, from 0.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Trace of the generation, for --layer.")] = None,
    layer: Annotated[int | None, typer.Option(min=-1, help="Of a generation only this layer; -1: before.")] = None,
    text: Annotated[str | None, typer.Option(help="The text that the generation must have given.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed that the generation must have been drawn with.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Public key (hex or PEM) whose receipts count.")] = None,
    salt: Annotated[Path | None, typer.Option(help="File with the salt of the commitment to the input.")] = None,
    nonce: Annotated[str | None, typer.Option(help="The nonce that the receipt must carry, 64 hex digits.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; the result does not depend on them.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Verify a receipt: exit code 0 if it holds, 1 if it does not.

    Of a run, by running the program again: RECEIPT FILE.ree --input FILE. Of a generation, by one pass over its prompt
    and tokens: RECEIPT --model FOLDER --prompt TEXT.
    """
    import ree
    from ree import signing, tensors
    from ree.commit import receipt as receipts
    from ree.commit import rerun

    if threads is not None:
        ree.threads(threads)
    if model is not None:
        if file is not None or inputs is not None:
            raise InputError("a receipt is of a run (FILE.ree --input FILE) or of a generation (--model), not of both")
        asked = cli_generate.Asked(receipt, model, prompt, prompt_file, key, salt, nonce, dtype, device)
        part, answer = cli_generate.Part(step, trace, layer), cli_generate.Answer(text, seed)
        found = cli_generate.verify(asked, part, answer)
        _print(found[0], as_json, found[1])
        return
    if file is None or inputs is None or (prompt, prompt_file, dtype, step, trace, layer, text, seed) != (None,) * 8:
        raise InputError("RECEIPT FILE.ree --input FILE verifies a run, RECEIPT --model FOLDER --prompt a generation")
    envelope, keys, opening = receipts.load(receipt), signing.trusted(key), signing.read_salt(salt)
    receipts.read(envelope, keys)  # a receipt that is no good needs no program
    program = ree.load(file, device)
    given = tensors.program_inputs(program, tensors.read(inputs))
    expected = None if nonce is None else signing.digest(nonce, "--nonce")
    verified = rerun.verify(envelope, program, given, opening, keys, expected)
    result = signing.describe(verified) | {"verified": "by running the program again"}
    held = "; anyone may have signed it: name the key that you trust with --key" if keys is None else ""
    unseen = signing.unseen(verified)
    held += f"; not looked at: {', '.join(unseen)}" if unseen else ""
    result["unseen"] = unseen
    _print(result, as_json, f"the receipt holds: a run here gave the same bits; signed by {verified.signer.id}{held}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A .ree file, or a Hugging Face folder of a language model.")],
    size: Annotated[list[str] | None, typer.Option(help="Value of a dynamic dimension, NAME=N.")] = None,
    dtype: cli_generate.Dtype = None,
    text: Annotated[Path | None, typer.Option(help="A text: how well the model predicts it in each dtype.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Operators, groups, floating-point operations, bytes and digests of a .ree file; or what a language model is."""
    if file.is_dir():
        if size:
            raise InputError("--size goes with a .ree file")
        described = cli_generate.inspect(file, dtype, text, device)
        _print(described, as_json, "\n".join(f"{key}: {value}" for key, value in described.items()))
        return
    if dtype is not None or text is not None:
        raise InputError("--dtype and --text go with a model folder")
    if device != "cpu":
        raise InputError("--device goes with --text; what is in a .ree file is the same on every device")
    import ree
    from ree import inspection

    found = inspection.describe(ree.load(file), _sizes(size or []))
    if as_json:
        _print(found, True)
        return
    for key in ("program_id", "inputs", "outputs", "dynamic", "planned_at"):
        _out.print(f"{key}: {found[key]}", markup=False, highlight=False)
    for key in ("flops", "weights_bytes", "intermediate_bytes", "arena_bytes"):
        _out.print(f"{key}: {found[key]:,}", markup=False, highlight=False)
    counts = Table("operator", "nodes", title="operators")
    for name, count in found["operators"].items():
        counts.add_row(name, str(count))
    groups = Table("#", "kernel", "operators", "rows x columns", title="groups, in order")
    for number, group in enumerate(found["groups"]):
        rows, columns = group["rows_columns"]
        groups.add_row(str(number), group["kernel"], " ".join(group["operators"]), f"{rows} x {columns}")
    weights = Table("weight", "type", "blake3", title="weights")
    for name, weight in found["weights"].items():
        weights.add_row(name, weight["type"], weight["blake3"])
    for table in (counts, groups, weights):
        _out.print(table, markup=False)


@app.command()
def bench(
    source: Annotated[str, typer.Argument(help="A .ree file, or a model as `ree compile` takes it.")],
    threads: Threads = 2,
    rounds: Annotated[int, typer.Option(min=1, max=ROUNDS_MAX, help="Interleaved rounds of three runs.")] = 5,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Time a model: ree against eager, torch.compile and, if installed, onnxruntime."""
    from ree import bench as bench_module

    with _status("preparing") as status:
        result = bench_module.bench(source, threads, rounds, lambda step: status.update(step), device)
    if as_json:
        _print(result, True)
        return
    table = Table("engine", "median ms", "to ree", "prepare s", "digest")
    for name, row in result["engines"].items():
        ratio = row["median_ms"] / result["engines"]["ree"]["median_ms"]
        table.add_row(name, f"{row['median_ms']:.3f}", f"{ratio:.2f}", f"{row['prepare_s']:.2f}", row["digest"])
    _out.print(table, markup=False)
    for name, reason in result["failed"].items():
        _out.print(f"{name} cannot run this model: {reason}", markup=False, highlight=False)


@app.command()
def audit(source: Model, as_json: Json = False) -> None:
    """Which operators of a model torch itself does not reproduce, and why."""
    from ree import audit as audit_module
    from ree import loaders

    with _status("loading the model") as status:
        loaded = loaders.load(source)
        report = audit_module.audit(
            loaded.model, loaded.example_inputs, progress=lambda step: status.update(f"auditing: {step}")
        )
    if as_json:
        _print(report.to_json(), True)
        return
    table = Table("operator", "calls", "changes with", "elements", "max ulp", "max relative", "cause")
    for operator in report.operators:
        if operator.reproduces:
            table.add_row(operator.target, str(operator.calls), "nothing that was tried", "0", "", "", "")
            continue
        for first, change in zip([True] + [False] * len(operator.changes), operator.changes, strict=False):
            name, calls, cause = (operator.target, str(operator.calls), operator.cause) if first else ("", "", "")
            share = f"{change.differing}/{change.elements}"
            row = (change.setting, share, str(change.ulp_max), f"{change.relative_max:.1e}", cause)
            table.add_row(name, calls, *row)
    _out.print(table, markup=False)
    for target, reason in report.skipped.items():
        _out.print(f"not audited: {target} ({reason})", markup=False, highlight=False)
    bad = sum(not o.reproduces for o in report.operators)
    _out.print(f"{bad} of {len(report.operators)} kinds of operator calls change their bits.", highlight=False)


@app.command()
def demo(as_json: Json = False) -> None:
    """A trained model under every instruction set, thread count and batch size: one digest; and who catches a lie."""
    from ree import demo as demo_module

    with _status("preparing") as status:
        result = demo_module.demo(lambda step: status.update(step))
    if as_json:
        _print(result.to_json(), True)
    else:
        demo_module.show(result, _out)
    if result.failures:
        raise VerificationError("; ".join(result.failures))


# -- helpers ------------------------------------------------------------------------


def _status(text: str) -> Status:
    """A progress line on standard error, shown on terminals only."""
    return Console(file=sys.stderr).status(text)


def _sizes(texts: list[str]) -> dict[str, int]:
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not re.fullmatch("[0-9]{1,18}", value):
            raise InputError(f"--size takes NAME=N, N an integer from 0 of at most 18 digits, not {text!r}")
        if name in found:
            raise InputError(f"--size gives {name} twice")
        found[name] = int(value)
    return found


def _print(result: dict[str, Any], as_json: bool, text: str = "") -> None:
    print(json.dumps(result, indent=1) if as_json else text)


cli_receipt.add_to(app)
cli_proof.add_to(app)
cli_dispute.add_to(app)
cli_generate.add_to(app)
cli_serve.add_to(app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and turns every error of ree into one line and an exit code."""
    if sys.stdout is None:  # closed: `ree ... >&-`
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a model's text may have letters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # torch's advice to its own callers
        code = _run(arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _run(arguments: list[str] | None) -> Any:
    """The exit code of a command, its error printed."""
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
        return code
    except _USAGE_ERROR as error:
        return _complain(error.format_message(), BAD)
    except VerificationError as error:
        return _complain(str(error), FAILED)
    except Error as error:
        return _complain(str(error), BAD)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", 130)
    except RecursionError:
        return _complain("something is nested too deeply", BAD)
    except MemoryError:
        return _complain("there is not enough memory", BAD)
    except SystemExit as stop:  # of rich where the reader of a pipe has gone, or of the user's model
        return BAD if _lost_reader(stop) else _complain(f"the model stopped the process (sys.exit({stop.code!r}))", BAD)
    except OSError as error:
        return BAD if _lost_reader(error) else _complain(_describe(error), BAD)


def _lost_reader(error: BaseException) -> bool:
    """True for a broken pipe; what is left of the output is thrown away, lest the interpreter's flush fails as well."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError)


def _describe(error: OSError) -> str:
    text = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {text}" if error.filename else text


def _complain(text: str, code: int) -> int:
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    print(f"ree: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
