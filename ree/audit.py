"""Which operators of a model torch itself does not reproduce, and why.

The model runs once and every ATen call is recorded with its inputs. Each call then runs
again, alone, with other thread counts, with a part of its batch, and in fresh processes with
other instruction sets (ATen's, oneDNN's and MKL's), and the bits of the results are compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ree.audit_causes import cause
from ree.audit_replay import Call, clone, replay, resolve, run, save
from ree.errors import Error, UnsupportedError

THREADS = (1, 2, 3)
BATCHES = (1, 3)
PROCESS_TIMEOUT_S = 600
BYTES_MAX = 4 << 30  # recorded inputs, all together
CLOSE = 1e-2  # a part of a batch must be at least this close to be the same computation

# The instruction sets of torch's three sources of kernels, one at a time and together.
PROCESSES: dict[str, dict[str, str]] = {
    "ATen portable": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen AVX-512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "oneDNN SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    "MKL AVX2": {"MKL_CBWR": "AVX2"},
}
_SETTINGS = frozenset(name for setting in PROCESSES.values() for name in setting)


@dataclass(frozen=True, slots=True)
class Change:
    """How far the bits moved under one setting, over all elements of the outputs."""

    setting: str
    kind: str  # "repeat", "threads", "batch" or "instruction set"
    differing: int
    elements: int
    ulp_max: int
    relative_max: float


@dataclass
class Operator:
    """One operator call of the model and what was found about it."""

    target: str
    inputs: str
    where: str
    calls: int
    checked: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    cause: str = ""

    @property
    def reproduces(self) -> bool:
        return not self.changes


@dataclass
class Report:
    """The audit of a model; `skipped` maps operators that were not run to the reason."""

    operators: list[Operator]
    skipped: dict[str, str]

    @property
    def reproduces(self) -> bool:
        return all(operator.reproduces for operator in self.operators)

    def to_json(self) -> dict[str, Any]:
        return {
            "reproduces": self.reproduces,
            "operators": [{**asdict(o), "reproduces": o.reproduces} for o in self.operators],
            "skipped": self.skipped,
        }


def audit(
    model: Any,
    inputs: Sequence[Any],
    processes: Mapping[str, Mapping[str, str]] = PROCESSES,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Audit a module or ExportedProgram on these inputs.

    processes: settings of fresh processes, name to environment; `progress` is told each step.
    """
    import torch

    threads = torch.get_num_threads()
    progress("recording the model's operators")
    calls, skipped = record(model, inputs)
    operators = [Operator(c.target, _signature(c), c.where, c.count) for c in calls]
    try:
        torch.set_num_threads(THREADS[0])
        for call, operator in zip(calls, operators, strict=True):
            call.outputs = run(call)
            _check_in_process(call, operator)
    finally:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="ree-audit-") as folder:
        save(calls, Path(folder))
        for setting, environment in processes.items():
            progress(setting)
            outputs = _run_process(Path(folder), environment)
            for number, (call, operator) in enumerate(zip(calls, operators, strict=True)):
                found = [outputs[f"1/{number}/{position}"] for position in range(len(call.outputs))]
                _compare(operator, setting, "instruction set", call.outputs, found)
    for operator in operators:
        name = resolve(operator.target)._schema.name.removeprefix("aten::").rstrip("_")
        operator.cause = cause(name, (change.kind for change in operator.changes))
    return Report(operators, skipped)


# -- recording ----------------------------------------------------------------------


def record(model: Any, inputs: Sequence[Any]) -> tuple[list[Call], dict[str, str]]:
    """One call for each operator and kind of input, and the operators that cannot be replayed.

    Views and allocations compute nothing and are left out.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.module_tracker import ModuleTracker

    calls: dict[tuple[str, str], Call] = {}
    skipped: dict[str, str] = {}
    tracker = ModuleTracker()
    recorded_bytes = 0

    def note(call: Call) -> None:
        nonlocal recorded_bytes
        known = calls.setdefault((call.target, _signature(call)), call)
        if known is not call:
            known.count += 1
            return
        call.where = max(tracker.parents - {"Global"}, key=len, default="")
        recorded_bytes += sum(t.nbytes for t in _tensors(call.args, call.kwargs))
        if recorded_bytes > BYTES_MAX:
            raise UnsupportedError(f"the operators' inputs take more than {BYTES_MAX} bytes")

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            reason = _not_audited(function)
            dense = all(map(_is_dense, _tensors(args, kwargs)))
            copies = _copied(args, kwargs) if reason is None and dense else None  # before the call can write to them
            result = function(*args, **kwargs)
            if reason is None and not (dense and all(map(_is_dense, _tensors(result)))):
                reason = "takes or gives tensors that are not dense"
            if reason:
                skipped[str(function)] = reason
            elif copies is not None and _tensors(args, kwargs):
                note(Call(str(function), *copies))
            return result

    module = model if isinstance(model, torch.nn.Module) else model.module()
    try:
        with torch.no_grad(), tracker, Recorder():
            module(*inputs)
    except Error:
        raise
    except Exception as error:  # the user's model may raise anything
        raise UnsupportedError(f"the model does not run on its example inputs: {error}") from error
    return list(calls.values()), skipped


def _not_audited(function: Any) -> str | None:
    """None: audit it; "": it computes nothing; otherwise the reason to list."""
    import torch

    if torch.Tag.nondeterministic_seeded in function.tags:
        return "draws random numbers"
    if function.namespace != "aten":
        return "not an operator of torch"
    returns = function._schema.returns
    views = [r.alias_info is not None and not r.alias_info.is_write for r in returns]
    if all(views) or function._schema.name in ("aten::empty", "aten::_to_copy", "aten::lift_fresh_copy"):
        return ""
    return None


def _tensors(*values: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _is_dense(tensor: Any) -> bool:
    """Whether its elements lie in plain memory: not sparse, nested or quantised."""
    import torch

    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


def _copied(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import torch
    from torch.utils import _pytree

    return _pytree.tree_map(lambda v: clone(v) if isinstance(v, torch.Tensor) else v, (tuple(args), dict(kwargs)))  # type: ignore[no-any-return]


def _signature(call: Call) -> str:
    """Dtypes, shapes and layouts of tensor arguments and the values of all others."""
    import torch

    def describe(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            name = str(value.dtype).removeprefix("torch.")
            dense = "" if value.is_contiguous() else f" strides {list(value.stride())}"
            return f"{name}{list(value.shape)}{dense}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(describe(item) for item in value)}]"
        return str(value)

    parts = [describe(a) for a in call.args] + [f"{k}={describe(v)}" for k, v in call.kwargs.items()]
    return ", ".join(parts)


# -- settings within a process ----------------------------------------------------------


def _check_in_process(call: Call, operator: Operator) -> None:
    """The call again: unchanged, with other thread counts, and with parts of its batch."""
    import torch

    _compare(operator, "the same call again", "repeat", call.outputs, run(call))
    for count in THREADS[1:]:
        torch.set_num_threads(count)
        _compare(operator, f"{count} threads", "threads", call.outputs, run(call))
    torch.set_num_threads(THREADS[0])
    for size, expected, found in _batch_parts(call):
        _compare(operator, f"batch of {size}", "batch", expected, found)


def _batch_parts(call: Call) -> Iterator[tuple[int, list[Any], list[Any]]]:
    """(size, rows of the full result, result of those rows alone) where axis 0 is a batch.

    Axis 0 is a batch if the operator takes the first rows of some of its arguments and gives
    about the first rows of its result. No table of operators says so: it is tried.
    """
    if not call.outputs or call.outputs[0].dim() == 0 or len(call.outputs) > 1:
        return
    whole = call.outputs[0]
    for size in BATCHES:
        if size >= whole.shape[0]:
            continue
        for chosen in _candidates(call, whole.shape[0]):
            part = _run_part(call, chosen, size)
            if part is not None and _is_about(part, whole[:size]):
                yield size, [whole[:size]], [part]
                break


def _candidates(call: Call, batch: int) -> list[tuple[int, ...]]:
    """Which arguments may carry the batch: all whose axis 0 fits, else one of them."""
    import torch

    fits = [n for n, a in enumerate(call.args) if isinstance(a, torch.Tensor) and a.dim() > 0 and a.shape[0] == batch]
    return [tuple(fits), *((n,) for n in fits if len(fits) > 1)] if fits else []


def _run_part(call: Call, chosen: Sequence[int], size: int) -> Any:
    args = tuple(a[:size] if n in chosen else a for n, a in enumerate(call.args))
    try:
        outputs = run(Call(call.target, args, call.kwargs))
    except (RuntimeError, IndexError, ValueError):  # this argument carries no batch
        return None
    return outputs[0] if len(outputs) == 1 else None


def _is_about(part: Any, rows: Any) -> bool:
    import torch

    if part.shape != rows.shape or part.dtype != rows.dtype:
        return False
    return bool(torch.allclose(part.double(), rows.double(), rtol=CLOSE, atol=CLOSE, equal_nan=True))


# -- settings of a process ------------------------------------------------------------------


def _run_process(folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Outputs of all calls in a fresh process with one thread, keyed "1/call/output"."""
    from safetensors.torch import load_file

    output = folder / "outputs.safetensors"
    env = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    root = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH", ""))))
    command = [sys.executable, "-W", "ignore", "-m", replay.__module__, str(folder), str(output), "1"]
    try:
        done = subprocess.run(
            command, env=env | dict(environment), capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Error(f"the run with {dict(environment)} took more than {PROCESS_TIMEOUT_S} s") from None
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Error(f"the run with {dict(environment)} failed: {tail[0]}")
    return load_file(str(output))


# -- comparison -----------------------------------------------------------------------------


def _compare(operator: Operator, setting: str, kind: str, expected: Sequence[Any], found: Sequence[Any]) -> None:
    """Note the setting as checked, and the change if any bit differs."""
    operator.checked.append(setting)
    differences = [difference(a, b) for a, b in zip(expected, found, strict=True)]
    differing = sum(d[0] for d in differences)
    if differing:
        elements = sum(t.numel() for t in expected)
        ulp = max(d[1] for d in differences)
        relative = max(d[2] for d in differences)
        operator.changes.append(Change(setting, kind, differing, elements, ulp, relative))


def difference(a: Any, b: Any) -> tuple[int, int, float]:
    """(elements whose bits differ, largest distance in ulp, largest relative difference).

    Any two NaNs count as equal; ulp and relative difference are taken where both are finite.
    """
    import torch

    if not a.is_floating_point():
        return int((a != b).sum()), 0, 0.0
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    x, y = a.contiguous(), b.contiguous()
    differs = (x.view(bits) != y.view(bits)) & ~(x.isnan() & y.isnan())
    count = int(differs.sum())
    where = differs & x.isfinite() & y.isfinite()
    if not bool(where.any()):
        return count, 0, 0.0
    x, y = x[where], y[where]
    ulp = (_ordered(x.view(bits)) - _ordered(y.view(bits))).abs().max()
    scale = torch.maximum(x.double().abs(), y.double().abs())
    return count, int(ulp), float(((x.double() - y.double()).abs() / scale).nan_to_num(0.0).max())


def _ordered(bits: Any) -> Any:
    """Sign-magnitude bit patterns as int64 in the order of the numbers they stand for."""
    import torch

    wide = bits.to(torch.int64)
    magnitude = wide & torch.iinfo(bits.dtype).max
    return torch.where(wide < 0, -magnitude, wide)
