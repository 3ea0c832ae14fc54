"""What users import: compile, load, verify, threads, and the torch.compile backend."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ree.device.backend import backend_of
from ree.errors import InputError
from ree.limits import THREADS_MAX
from ree.program import Program, load

if TYPE_CHECKING:
    from ree.commit.keys import PublicKey, Signer
    from ree.commit.receipt import Receipt
    from ree.commit.trace import Trace
    from ree.commit.trace_file import load as load_trace
    from ree.outline import Outline
    from ree.referee.dispute import Dispute
    from ree.spot.check import Check


def compile(
    model: Any,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    device: str = "cpu",
    seed: int = 0,
) -> Program:
    """Compile a model to a program that gives the same bits on every processor.

    model: nn.Module (used in its current mode; call .eval() first) or an ExportedProgram;
    example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword
    arguments; dynamic_shapes: as torch.export.export takes them; device: "cpu", "cuda" or "cuda:N", where it
    runs; seed: of the model's random operators (0 .. 2^64-1; Philox, the same numbers everywhere). Raises
    CaptureError, UnsupportedError (an operator without a definition), DeviceError.
    """
    import ree_kernels.cpu as cpu
    from ree.capture import capture
    from ree.passes import prepare

    backend_of(device)  # first, since it is cheap
    args, kwargs = _arguments(example_inputs)
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise InputError(f"seed {seed} is not in 0 .. 2^64-1")
    with cpu.default_fp_state(), _uncollected():
        captured = capture(model, args, kwargs, dynamic_shapes, seed)
        program = Program(prepare(captured.graph), captured.inputs, captured.outputs, captured.rebuild, device=device)
        program.watch(captured.weights)
        return program


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: what a compilation makes lives on, and each search through all of torch's objects
    takes a quarter of a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _arguments(example_inputs: Any) -> tuple[Sequence[Any] | None, Mapping[str, Any] | None]:
    if example_inputs is None:
        return None, None
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    if hasattr(example_inputs, "shape"):
        return (example_inputs,), {}
    raise InputError("example_inputs is a tensor, a tuple of arguments or a dict of keyword arguments")


def threads(n: int | None = None) -> int:
    """The number of threads that runs use; `n` sets it. Results never depend on it."""
    import ree_kernels.cpu as cpu
    from ree_kernels import KernelError

    if n is not None and (type(n) is not int or not 1 <= n <= THREADS_MAX):
        raise InputError(f"threads({n!r}): the number must be an integer in 1..{THREADS_MAX}")
    try:
        return cpu.threads(n)
    except KernelError as error:
        raise InputError(str(error)) from None


def verify(
    receipt: bytes | str,
    program: Program,
    inputs: Any,
    salt: bytes | None = None,
    trusted_keys: Collection[PublicKey] | None = None,
    nonce: bytes | None = None,
) -> Receipt:
    """Verify a receipt by running the program again; VerificationError says what does not hold.

    receipt: its JSON; inputs: as `compile` takes example inputs; salt: opens the commitment to the input;
    trusted_keys: whose signatures count (None: anyone's; look at the result's `signer`); nonce: the 32 bytes
    that it must carry, against an old receipt. Any machine will do.
    """
    from ree.commit import rerun

    args, kwargs = _arguments(inputs)
    tensors = program.flat_inputs(*(args or ()), **(kwargs or {}))
    return rerun.verify(receipt, program, tensors, salt, trusted_keys, nonce)


def check(
    proof: bytes,
    receipt: bytes | str,
    program: Outline | None = None,
    trusted_keys: Collection[PublicKey] | None = None,
    seed: bytes | None = None,
    samples: int | None = None,
    inputs: Any = None,
    salt: bytes | None = None,
    nonce: bytes | None = None,
) -> Check:
    """Check a spot-check proof, as `trace.prove` makes it, against a receipt; VerificationError if it does not hold.

    program: a Program, or what `ree.outline.load` reads of a file; needed unless the proof holds it itself.
    trusted_keys, salt, nonce: as for `verify`; seed: the 32 bytes that the prover was given; samples: at least so many
    are wanted; inputs: the tensor or tensors that the run must be on, in order (None: any). Nothing is run, no
    weight is read. The result says which errors are found, and with which probability.
    """
    from ree.outline import Outline
    from ree.spot import check as module

    if program is not None and not isinstance(program, Outline):
        raise InputError(f"a program is expected, not a {type(program).__name__}: ree.outline.load reads one of a file")
    given = (inputs,) if hasattr(inputs, "shape") else inputs
    if given is not None and not isinstance(given, tuple | list):
        raise InputError("inputs are a tensor, or several in the order of the program's inputs")
    arrays = None if given is None else [_array(tensor) for tensor in given]
    return module.check(proof, receipt, program, trusted_keys, seed, samples, arrays, salt, nonce)


def _array(tensor: Any) -> Any:
    """A tensor of torch, or a NumPy array, as NumPy array (bf16 as uint16)."""
    import numpy as np

    if isinstance(tensor, np.ndarray):
        return tensor
    if hasattr(tensor, "detach"):
        from ree.capture import to_numpy

        return to_numpy(tensor)
    raise InputError(f"a tensor is expected, not a {type(tensor).__name__}")


def dispute(
    program: Program, claim_a: Trace, claim_b: Trace | None = None, at: tuple[int, int] | None = None
) -> Dispute:
    """Settle a dispute: down to the element and step in which a claim does not follow from its own operands.

    claim_a, claim_b: traces of one run, with access to the tensors that they commit to; with one claim only it is held
    against itself. at: (stage, element in C order) to look at; None: the first difference. `wrong` of the
    result names the claims that lost. InputError, VerificationError: the claims are not about one run of this program.
    """
    from ree.referee import dispute as module

    return module.dispute(program, claim_a, claim_b, at)


def backend(
    graph_module: Any, example_inputs: Sequence[Any], options: Mapping[str, Any] | None = None, **ignored: Any
) -> Any:
    """The backend of `torch.compile(model, backend="ree")`.

    options: {"freeze": False} reads the parameters at every call, where they else are constants
    for inference: slower, but a change through `.data` or NumPy memory is seen, too. InputError
    for others. `mode`, which is of torch's own compiler, is ignored.
    """
    from ree.dynamo import compile_graph

    options = {"freeze": True, **(options or {})}
    if set(options) != {"freeze"} or type(options["freeze"]) is not bool:
        raise InputError(f"options {options} of torch.compile: ree knows 'freeze', which is True or False")
    return compile_graph(graph_module, example_inputs, options["freeze"])


def __getattr__(name: str) -> Any:
    """Signer needs the cryptography package, a trace what it commits to: imported when they are used."""
    if name == "Signer":
        from ree.commit.keys import Signer

        return Signer
    if name == "load_trace":
        from ree.commit.trace_file import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Program", "Signer", "backend", "check", "compile", "dispute", "load", "load_trace", "threads", "verify"]
