"""The torch.compile backend: AOTAutograd's functional ATen graphs, lowered and run by ree.

Parameters arrive as inputs of the graph. For inference they are frozen: taken as constants, so
that they are packed once. A frozen parameter that was replaced, or changed by an operator of
torch, is noticed by its address and version counter, and the program is built again. A change
behind torch's back (through `.data`, or NumPy memory) moves neither, and to compare the bytes at
every call would cost as much as to read the parameters anew, which is what `freeze=False` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ree_kernels.cpu as cpu
from ree.capture import Importer, from_torch_dtype, target_name, to_numpy
from ree.device.backend import CPU
from ree.errors import CaptureError, UnsupportedError
from ree.graph import Graph, check
from ree.lower import T, located
from ree.ops.spec import ADVICE, lowerings
from ree.passes import prepare
from ree.program import Program
from ree.structure import TENSOR


def compile_graph(graph_module: Any, example_inputs: Sequence[Any], freeze: bool = True) -> Callable[..., Any]:
    """A callable for a graph of torch.compile; operators without a definition raise UnsupportedError.

    freeze: parameters are constants where no gradient is recorded; False: they are read at every call.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    def compiler(part: Any, inputs: Sequence[Any]) -> Any:
        return make_boxed_func(Runner(part, freeze))

    return aot_autograd(fw_compiler=compiler, decompositions=_decompositions())(graph_module, example_inputs)


def _decompositions() -> dict[Any, Any]:
    """torch's core decompositions, except for operators that have a lowering rule."""
    from torch._decomp import core_aten_decompositions

    known = set(lowerings())
    return {op: rule for op, rule in core_aten_decompositions().items() if str(op) not in known}


class _Importer(Importer):
    """Refuses random numbers: the graph is lowered once, so that every call would draw the same."""

    def _call(self, graph_module: Any, node: Any) -> Any:
        drawn = self.lowering.random_streams
        result = super()._call(graph_module, node)
        if self.lowering.random_streams != drawn:
            raise UnsupportedError(
                f"{target_name(node.target)} draws random numbers, which would be the same at every call of a graph of "
                "torch.compile; call model.eval() if it is dropout, pass the numbers in as an input, or use "
                "ree.compile(model, inputs, seed=...)"
            )
        return result


class Runner:
    """Runs one functional graph; makes its program at the first call, when real tensors are there.

    A program is rebuilt when a parameter's memory or version changes, or, for graphs of
    dynamic shape, when the shapes do.
    """

    def __init__(self, graph_module: Any, freeze: bool = True) -> None:
        self.graph_module = graph_module
        self.freeze = freeze
        _require_rules(graph_module)
        self._program: Program | None = None
        self._state: tuple[Any, ...] = ()
        self._outputs: list[Any] = []
        self._expected: list[Any] = []
        self._held: list[Any] = []  # the parameters that the program was built from: no other takes their address

    def __call__(self, *args: Any) -> list[Any]:
        import torch

        freeze = self.freeze and not torch.is_grad_enabled()
        # a tensor made in inference mode counts no versions, so that no change of it would be noticed
        is_weight = [freeze and isinstance(a, torch.nn.Parameter) and not a.is_inference() for a in args]
        state = tuple(_state(a, weight) for a, weight in zip(args, is_weight, strict=True))
        if self._program is None or state != self._state:
            with cpu.default_fp_state():
                self._program, self._state = self._build(args, is_weight), state
            self._held = [a for a, weight in zip(args, is_weight, strict=True) if weight]
        inputs = [a for a, w in zip(args, is_weight, strict=True) if isinstance(a, torch.Tensor) and not w]
        tensors = iter(self._with_strides(self._program.run_flat(inputs)))
        return [next(tensors) if is_tensor else value for is_tensor, value in self._outputs]

    def _with_strides(self, tensors: Sequence[Any]) -> list[Any]:
        """Outputs in the strides that torch has traced its own code with."""
        import torch

        found = []
        for tensor, value in zip(tensors, self._expected, strict=True):
            strides = tuple(n for n in value.stride() if isinstance(n, int))
            if len(strides) == tensor.dim() and strides != tensor.stride() and tensor.numel():
                empty = torch.empty_strided(tuple(tensor.shape), strides, dtype=tensor.dtype, device=tensor.device)
                tensor = empty.copy_(tensor)
            found.append(tensor)
        return found

    def _build(self, args: Sequence[Any], is_weight: Sequence[bool]) -> Program:
        import torch

        importer = _Importer()
        module = _specialised(self.graph_module, args)
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        for node, value, weight in zip(placeholders, args, is_weight, strict=True):
            if weight:
                dtype = from_torch_dtype(value.dtype)
                importer.values[node] = importer.lowering.constant(to_numpy(value), dtype, node.name)
            elif isinstance(value, torch.Tensor):
                importer.values[node] = importer.placeholder(node.name, value)
            else:
                importer.values[node] = value
        results = importer.run_graph(module)
        (output,) = (n for n in module.graph.nodes if n.op == "output")
        given = [n.meta.get("val") if hasattr(n, "meta") else None for n in output.args[0]]
        self._expected = [v for v, r in zip(given, results, strict=True) if isinstance(r, T)]
        self._outputs = [(isinstance(r, T), r) for r in results]
        tensors = [r for r in results if isinstance(r, T)]
        graph: Graph = importer.lowering.finish(tensors)
        check(graph)
        structures = {"tuple": [TENSOR] * len(graph.inputs)}, {"list": [TENSOR] * len(tensors)}
        return Program(prepare(graph), *structures, device=_device_of(args))


def _device_of(args: Sequence[Any]) -> str:
    """Where a graph's tensors lie, as `Program.to` names it; UnsupportedError if not all lie on one device."""
    import torch

    found = sorted({str(a.device) for a in args if isinstance(a, torch.Tensor)}) or [CPU]
    if len(found) > 1:
        raise UnsupportedError(f"the graph's tensors lie on several devices: {', '.join(found)}")
    if found[0] != CPU and not found[0].startswith("cuda"):
        raise UnsupportedError(f"the graph's tensors lie on {found[0]}; ree runs on the CPU and on CUDA devices")
    return found[0]


def _state(value: Any, is_weight: bool) -> Any:
    """What a program depends on: a weight's address and version, another tensor's shape, a number itself."""
    import torch

    if is_weight:
        return value.data_ptr(), value._version
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


def _require_rules(graph_module: Any) -> None:
    """UnsupportedError at compile time for the first operator without a rule."""
    from ree.capture import is_known, source_of

    known = set(lowerings())
    for node in graph_module.graph.nodes:
        name, source = target_name(node.target), source_of(node)
        if not is_known(node, known):
            raise UnsupportedError(located(f"operator {name} is not supported; {ADVICE}", source))


def _specialised(graph_module: Any, args: Sequence[Any]) -> Any:
    """The graph with static shapes for these arguments (itself, if it has no symbolic ones)."""
    import torch

    symbolic = any(isinstance(a, int) for a in args) or any(
        isinstance(n, torch.SymInt)
        for node in graph_module.graph.nodes
        for v in [node.meta.get("val")]
        if isinstance(v, torch.Tensor)
        for n in v.shape
    )
    if not symbolic:
        return graph_module
    from torch.fx import Interpreter
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.traceback import preserve_node_meta

    try:
        with preserve_node_meta():  # the user's lines, for errors
            return make_fx(Interpreter(graph_module).run, tracing_mode="fake")(*args)
    except Exception as error:
        raise CaptureError(f"torch cannot specialise the graph: {error}") from error
