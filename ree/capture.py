"""PyTorch model -> FX graph of ATen operators -> Graph.

`capture` takes an nn.Module or a torch.export.ExportedProgram; operators that have a
lowering rule of their own are kept whole, all others are decomposed by torch.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ree import dims, symbols
from ree.dims import Dim
from ree.errors import CaptureError, DTypeError, Error, UnsupportedError
from ree.graph import Data, Graph, check
from ree.lower import Lowering, T, located
from ree.ops.spec import lowerings
from ree.structure import TENSOR, Structure
from ree.types import DType, TensorType

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {
    DType.BOOL: "bool",
    DType.I8: "int8",
    DType.U8: "uint8",
    DType.I16: "int16",
    DType.I32: "int32",
    DType.I64: "int64",
    DType.U32: "uint32",
    DType.U64: "uint64",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.F32: "float32",
    DType.F64: "float64",
}
_FROM_TORCH_NAMES = {f"torch.{name}": dtype for dtype, name in _TORCH_NAMES.items()}
# calls that only assert something about shapes, which the program's own checks state again
_ASSERTIONS = re.compile(
    r"aten\.(_assert_scalar|_assert_async|_assert_tensor_metadata|sym_constrain_range)|.*\.lift_fresh$"
)
_SYMBOL_MAX = 1 << 31
_DATA_TO_NUMBER = ("aten.item.default", "aten._local_scalar_dense.default")
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


@dataclass(frozen=True)
class Captured:
    """A graph with the nested structures of the model's inputs and outputs.

    rebuild: makes the model's own output object of the flat tensors (None: use `outputs`); weights: tensors whose
    memory the constants share.
    """

    graph: Graph
    inputs: Structure  # {"tuple": [args, kwargs]}
    outputs: Structure
    rebuild: Callable[[Sequence[Any]], Any] | None = None
    weights: Sequence[torch.Tensor] = ()


def to_torch_dtype(dtype: DType) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, _TORCH_NAMES[dtype])
    return found


def from_torch_dtype(dtype: torch.dtype) -> DType:
    """DTypeError for dtypes that ree does not know (complex, quantised, float8)."""
    found = _FROM_TORCH_NAMES.get(str(dtype))
    if found is None:
        raise DTypeError(f"{dtype} is not supported")
    return found


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A C-contiguous array that shares the tensor's memory where it can (bf16 as uint16)."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    return (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()


def capture(
    model: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    seed: int = 0,
    data: Mapping[str, Data] | None = None,
) -> Captured:
    """Capture a model as a checked graph.

    model: nn.Module (exported in its current mode) or ExportedProgram; args, kwargs:
    example inputs of a module; seed: of its random operators (0 .. 2^64-1); data: numbers of parameters, by name, that
    take the place of those in the model. CaptureError:
    torch cannot export it; UnsupportedError: an operator has no definition.
    """
    import torch

    program = model if isinstance(model, torch.export.ExportedProgram) else _export(model, args, kwargs, dynamic_shapes)
    known = set(lowerings())
    if not all(is_known(node, known) for node in program.graph.nodes):
        table = torch.export.default_decompositions()
        for op in [op for op in table if str(op) in known]:
            table.pop(op)
        try:
            program = program.run_decompositions(table)
        except Exception as error:
            raise CaptureError(f"torch cannot decompose the model: {_first_line(error)}") from error
    importer = _Importer(program, data or {})
    importer.lowering.seed = seed
    return importer.run()


def _export(model: Any, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, dynamic_shapes: Any) -> Any:
    import torch

    if not isinstance(model, torch.nn.Module):
        raise CaptureError(f"cannot compile a {type(model).__name__}; pass an nn.Module or an ExportedProgram")
    if args is None and kwargs is None:
        raise CaptureError("example inputs are needed to capture a module")
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                model, tuple(args or ()), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        hint = ""
        if "data-dependent" in str(error).lower() or "GuardOnDataDependent" in type(error).__name__:
            hint = " (control flow that depends on data: use torch.where, or move it out of the model)"
        line = re.search(r'raised this error:\s*File "([^"]+)", line (\d+), in (.+)\n\s*(.*)', str(error))
        source = "{}:{}, in {}: {}".format(*line.groups()) if line else ""
        text = f"torch.export cannot capture the model{hint}: {_first_line(error)}"
        raise CaptureError(located(text, source)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the reports that torch logs and prints about what it then raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__


def is_known(node: Any, known: set[str]) -> bool:
    if node.op != "call_function":
        return True
    name = target_name(node.target)
    return name in known or "." not in name or _is_symbolic(node) or bool(_ASSERTIONS.match(name))


def target_name(target: Any) -> str:
    """The name that lowering rules use: "aten.add.Tensor"; plain functions have no dot."""
    return str(target) if hasattr(target, "_schema") else getattr(target, "__name__", str(target))


def _is_symbolic(node: Any) -> bool:
    import torch

    value = node.meta.get("val")
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool)


class Importer:
    """Walks FX nodes and calls the lowering rules; shared by export and torch.compile."""

    def __init__(self) -> None:
        self.lowering = Lowering()
        self.values: dict[Any, Any] = {}
        self.names: dict[str, str] = {}  # torch's symbol -> the dimension's name

    def run_graph(self, graph_module: Any) -> Any:
        """Lower all calls of a graph whose placeholders are in `values`; returns its output argument."""
        for node in graph_module.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = self._attribute(graph_module, node)
            elif node.op == "call_function":
                try:
                    self.values[node] = self._call(graph_module, node)
                except Error as error:
                    raise type(error)(located(_naming(node, str(error)), source_of(node))) from None
            elif node.op == "output":
                return self._argument(node.args[0])
        raise CaptureError("the captured graph has no output")

    def placeholder(self, name: str, value: Any) -> T:
        return self.lowering.input(name, self.tensor_type(value))

    def tensor_type(self, value: Any) -> TensorType:
        return TensorType(tuple(self.dim(n) for n in value.shape), from_torch_dtype(value.dtype))

    def dim(self, value: Any) -> int | Dim:
        return value if isinstance(value, int) else from_sympy(value.node.expr, self.names)

    def _attribute(self, graph_module: Any, node: Any) -> Any:
        import torch

        found = graph_module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if isinstance(found, torch.Tensor):
            return self.lowering.constant(to_numpy(found), from_torch_dtype(found.dtype), str(node.target))
        return found

    def _call(self, graph_module: Any, node: Any) -> Any:
        import operator

        name = target_name(node.target)
        if name in _DATA_TO_NUMBER:
            raise UnsupportedError(f"{name}: a number is read out of a tensor's data; keep it a tensor (torch.where)")
        if node.target is operator.getitem and isinstance(self.values.get(node.args[0]), tuple):
            result = self.values[node.args[0]][node.args[1]]
            if result is None:
                raise UnsupportedError(f"output {node.args[1]} of {node.args[0].target} is not supported")
            return result
        if _is_symbolic(node):
            return self._scalar(node.meta["val"])
        if _ASSERTIONS.match(name):
            return self._argument(node.args[0]) if name.endswith("lift_fresh") else None
        if name in _WRAPPERS:
            return self._inline(node)
        args = [self._argument(a) for a in node.args]
        kwargs = {k: self._argument(v) for k, v in node.kwargs.items()}
        drop = ("layout", "device", "pin_memory", "memory_format", "non_blocking")
        kwargs = {k: v for k, v in kwargs.items() if k not in drop}
        return self.lowering.call(name, args, kwargs, self._output_types(node), source_of(node))

    def _inline(self, node: Any) -> Any:
        arguments = [self._argument(a) for a in node.args]
        position = next(i for i, a in enumerate(arguments) if hasattr(a, "graph"))
        inner, operands = arguments[position], arguments[position + 1 :]
        placeholders = [n for n in inner.graph.nodes if n.op == "placeholder"]
        self.values.update(zip(placeholders, operands, strict=True))
        result = self.run_graph(inner)
        return tuple(result) if isinstance(result, tuple | list) else result

    def _output_types(self, node: Any) -> tuple[TensorType | None, ...]:
        import torch

        value = node.meta.get("val")
        values = value if isinstance(value, tuple | list) else (value,)
        return tuple(self.tensor_type(v) if isinstance(v, torch.Tensor) else None for v in values)

    def _argument(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.fx.Node):
            return self.values[value]
        if isinstance(value, tuple | list):
            return tuple(self._argument(v) for v in value)
        if isinstance(value, torch.dtype):
            return from_torch_dtype(value)
        return self._scalar(value)

    def _scalar(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.SymInt):
            return self.dim(value)
        if isinstance(value, torch.SymBool):
            return None  # only assertions read these
        if isinstance(value, torch.SymFloat):
            raise UnsupportedError("a float computed from a dynamic shape is not supported")
        return value


def _naming(node: Any, text: str) -> str:
    """An error's text with the operator's name, if it does not say it already."""
    name = target_name(node.target)
    return text if name in text else f"{name}: {text}"


class _Importer(Importer):
    """Imports an ExportedProgram: parameters and buffers become constants."""

    def __init__(self, program: Any, data: Mapping[str, Data]) -> None:
        super().__init__()
        self.program = program
        self.data = data
        self.weights: list[torch.Tensor] = []

    def run(self) -> Captured:
        signature = self.program.graph_signature
        self.names = symbols.names(_tensor_inputs(self.program))
        self.lowering.symbols = self._ranges()
        user_inputs = self._placeholders(signature)
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
            names = sorted({*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()})
            raise UnsupportedError(f"the model changes {names} in place; call model.eval(), or return new tensors")
        outputs = self.run_graph(self.program.graph_module)
        tensors = [o for o in outputs if isinstance(o, T)]
        graph = self.lowering.finish(tensors)
        graph.symbols = self._symbols(graph)
        check(graph)
        spec = self.program.call_spec
        return Captured(
            graph,
            _structure(spec.in_spec, iter(user_inputs)),
            _structure(spec.out_spec, iter(TENSOR if isinstance(o, T) else {"value": o} for o in outputs)),
            _rebuilder(spec.out_spec, outputs),
            self.weights,
        )

    def _placeholders(self, signature: Any) -> list[Structure]:
        """Binds all placeholders; returns the leaves of the input structure."""
        import torch
        from torch.export.graph_signature import InputKind

        nodes = [n for n in self.program.graph.nodes if n.op == "placeholder"]
        leaves: list[Structure] = []
        for node, spec in zip(nodes, signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                value = node.meta.get("val")
                if isinstance(value, torch.Tensor):
                    self.values[node] = self.placeholder(spec.arg.name, value)
                    leaves.append(TENSOR)
                elif isinstance(value, torch.SymInt):
                    raise UnsupportedError(f"input {spec.arg.name} is a dynamic integer; pass it as a tensor")
                else:
                    self.values[node] = getattr(spec.arg, "value", value)
                    leaves.append({"value": self.values[node]})
            else:
                self.values[node] = self._weight(spec)
        return leaves

    def _weight(self, spec: Any) -> T:
        program, name = self.program, spec.target
        table = program.state_dict if name in program.state_dict else program.constants
        if name not in table:
            raise CaptureError(f"the exported program holds no data for {name}")
        tensor = table[name]
        if not hasattr(tensor, "detach"):
            raise UnsupportedError(f"{name} is a {type(tensor).__name__}, not a tensor")
        if name in self.data:
            return self.lowering.stored(self.data[name], self.tensor_type(tensor), name)
        self.weights.append(tensor)
        return self.lowering.constant(to_numpy(tensor), from_torch_dtype(tensor.dtype), name)

    def _ranges(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest value of every symbol of the export, by its name."""
        result = {}
        for symbol, bounds in self.program.range_constraints.items():
            # torch's integer infinity calls itself finite, but compares as what it is
            high = _SYMBOL_MAX if bounds.upper > _SYMBOL_MAX else int(bounds.upper)
            low = 0 if bounds.lower < 0 else int(bounds.lower)
            if symbol.is_Symbol:
                result[self.names.get(str(symbol), str(symbol))] = (low, high)
        return result

    def _symbols(self, graph: Graph) -> dict[str, tuple[int, int]]:
        """The symbols that the inputs' shapes bind."""
        needed = {s for i in graph.inputs for n in i.type.shape for s in dims.symbols(n)}
        return {name: self.lowering.symbols.get(name, (0, _SYMBOL_MAX)) for name in sorted(needed)}


def source_of(node: Any) -> str:
    """The user's line that made an FX node: "file.py:12, in forward: return x + y"."""
    trace = node.meta.get("stack_trace") or ""
    found = re.findall(r'File "([^"]+)", line (\d+), in (.+)\n\s*(.*)', trace)
    own = [f for f in found if "/torch/" not in f[0] and not f[0].startswith("torch/")]
    if not (own or found):
        return ""
    file, line, function, text = (own or found)[-1]
    return f"{file}:{line}, in {function}: {text.strip()}"


def _tensor_inputs(program: Any) -> list[tuple[str, Any]]:
    """(name, fake tensor) of the tensors that the user passes to an exported program."""
    import torch

    given = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in given]
    return [(n.name, n.meta["val"]) for n in nodes if isinstance(n.meta.get("val"), torch.Tensor)]


def from_sympy(expression: Any, names: Mapping[str, str]) -> int | Dim:
    """The dimension that a sympy expression of torch's shape environment stands for, its symbols renamed."""
    if expression.is_Integer:
        return int(expression)
    if expression.is_Symbol:
        return dims.symbol(names.get(str(expression), str(expression)))
    name = type(expression).__name__
    if name == "Pow" and expression.args[1].is_Integer and int(expression.args[1]) > 0:
        base = from_sympy(expression.args[0], names)
        power: int | Dim = 1
        for _ in range(int(expression.args[1])):
            power = power * base
        return power
    arguments = [from_sympy(a, names) for a in expression.args]
    fold: dict[str, Callable[[Any, Any], int | Dim]] = {
        "Add": lambda a, b: a + b,
        "Mul": lambda a, b: a * b,
        "Max": dims.maximum,
        "Min": dims.minimum,
        "FloorDiv": dims.floordiv,
        "CleanDiv": dims.floordiv,
        "Mod": dims.mod,
        "PythonMod": dims.mod,
    }
    if name not in fold:
        renamed = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(expression))
        raise UnsupportedError(f"the dynamic dimension {renamed} is not supported")
    result = arguments[0]
    for argument in arguments[1:]:
        result = fold[name](result, argument)
    return result


def _structure(spec: Any, leaves: Any) -> Structure:
    """Our structure of a torch TreeSpec; classes that torch registers count as dicts or tuples."""
    if spec.is_leaf():
        return next(leaves)
    children = [_structure(child, leaves) for child in spec.children()]
    if spec.type in (tuple, list):
        return {spec.type.__name__: children}
    keys = spec.context if isinstance(spec.context, list | tuple) else None
    if spec.type is not dict and keys is not None and len(keys) == 2 and isinstance(keys[0], list | tuple):
        keys = keys[0]
    if keys is not None and len(keys) == len(children):
        return {"dict": [[str(key), child] for key, child in zip(keys, children, strict=True)]}
    return {"tuple": children}


def _rebuilder(spec: Any, outputs: Sequence[Any]) -> Callable[[Sequence[Any]], Any]:
    from torch.utils._pytree import tree_unflatten

    is_tensor = [isinstance(o, T) for o in outputs]
    constants = [None if t else o for t, o in zip(is_tensor, outputs, strict=True)]

    def rebuild(tensors: Sequence[Any]) -> Any:
        remaining = iter(tensors)
        leaves = [next(remaining) if t else c for t, c in zip(is_tensor, constants, strict=True)]
        return tree_unflatten(leaves, spec)

    return rebuild


__all__ = ["Captured", "Error", "Importer", "capture", "from_torch_dtype", "to_numpy", "to_torch_dtype"]
