"""Program: a compiled model. Call it, save it, load it."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ree import dims, file, structure
from ree.device.backend import CPU, Backend, StateMemory, TensorsThere, backend_of
from ree.errors import DTypeError, InputError, ShapeError, VerificationError
from ree.graph import Graph
from ree.limits import BINDINGS_CACHED_MAX, KEPT_BYTES_MAX
from ree.outline import Outline
from ree.structure import Structure
from ree.types import DType, TensorType

if TYPE_CHECKING:
    from ree.commit.record import Recording
    from ree.commit.trace import Manifest, Trace
    from ree.plan.plan import Plan
    from ree.plan.stream import Stream


_living: weakref.WeakSet[Program] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child nobody is there to release a lock that was held; a run writes whatever it reads."""
    for program in list(_living):
        program._lock = threading.RLock()
        program.weights.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)


class Program(Outline):
    """A compiled model that gives the same bits on every processor.

    Call it as the model itself: tensors of torch (or NumPy arrays) in the model's argument
    structure; outputs come in the model's structure. Thread-safe: runs take turns.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Structure,
        outputs: Structure,
        rebuild: Callable[[Sequence[Any]], Any] | None = None,
        trusted: bool = True,
        device: str = CPU,
    ) -> None:
        """trusted: the graph comes from our own compiler, not from a file; device: as for `to`."""
        from ree.plan.weights import Weights

        super().__init__(graph, inputs, outputs, trusted)
        self._rebuild = rebuild
        self.device = device
        self._backend = backend_of(device)
        self.weights = Weights(graph.constants)
        self._plans: OrderedDict[tuple[Any, tuple[int, ...]], Any] = OrderedDict()
        self._lock = threading.RLock()  # results that are computed again may be asked for while a plan is held
        self._watched: list[tuple[Any, int]] = []
        _living.add(self)
        if not graph.is_dynamic():
            self.plan(()).compile()

    def to(self, device: str) -> Program:
        """The same program on another device: "cpu", "cuda" or "cuda:N"; DeviceError if there is none.

        It gives the same bits, ids and receipts there. The weights are shared on the host.
        """
        if device == self.device:
            return self
        other = copy.copy(self)
        other.device, other._backend = device, backend_of(device)
        other._plans, other._lock = OrderedDict(), threading.RLock()
        _living.add(other)
        if not other.graph.is_dynamic():
            other.plan(()).compile()
        return other

    @property
    def device_text(self) -> str:
        """What a receipt says, for people, of where it runs."""
        return self._backend.text

    def watch(self, weights: Sequence[Any]) -> None:
        """Refuse to run or be written once one of these torch tensors has changed whose memory the program shares.

        A change through `.data` or NumPy is not seen.
        """
        shared = {c.data.ctypes.data for c in self.graph.constants if isinstance(c.data, np.ndarray)}
        held = [weight for weight in weights if weight.data_ptr() in shared and not weight.is_inference()]
        self._watched = [(weight, weight._version) for weight in held]

    def check_weights(self) -> None:
        """InputError if a watched weight has changed."""
        if any(weight._version != version for weight, version in self._watched):
            raise InputError("a weight of the model was changed in place after it was compiled: compile it again")

    # -- running ------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; InputError, ShapeError or DTypeError if the inputs do not fit."""
        results = self.run_flat(self.flat_inputs(*args, **kwargs))
        if self._rebuild is not None:
            return self._rebuild(results)
        return structure.unflatten(self.output_structure, results)

    def flat_inputs(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The tensors of a call in the order of `input_names`; InputError if they do not fit the structure."""
        return list(structure.flatten(self.input_structure, self._by_position(args, kwargs)))

    def _by_position(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional tensors that are passed by the name of their input take their places."""
        if self.input_structure.keys() != {"tuple"} or not kwargs:
            return args, kwargs
        positional = next(iter(self.input_structure["tuple"]), None)
        expected = positional.get("tuple", []) if isinstance(positional, dict) else []
        names = iter(self.input_names)
        moved = list(args)
        rest = dict(kwargs)
        for position, part in enumerate(expected):
            name = next(names, None)
            if part != structure.TENSOR:
                break
            if position == len(moved) and name in rest:
                moved.append(rest.pop(name))
        return tuple(moved), rest

    def run(
        self,
        *args: Any,
        commit: bool = False,
        keep: bool = False,
        keep_bytes_max: int = KEPT_BYTES_MAX,
        **kwargs: Any,
    ) -> tuple[Any, Trace | None]:
        """Run the model and return (outputs, trace); the trace is None without `commit`.

        commit: bind every result of the run in a trace; keep: hold the results for openings (else they are
        computed again when they are first asked for); keep_bytes_max: more than that many bytes of them lie in a
        temporary file without a name (LimitError if there is no room) instead of in memory. Errors as for a call.
        """
        tensors = self.flat_inputs(*args, **kwargs)
        if commit or keep:
            results, trace = self.run_committed(tensors, keep, keep_bytes_max)
        else:
            results, trace = self.run_flat(tensors), None
        if self._rebuild is not None:
            return self._rebuild(results), trace
        return structure.unflatten(self.output_structure, results), trace

    def run_flat(self, tensors: Sequence[Any]) -> list[Any]:
        """Run on a flat list of inputs (in the order of `input_names`); gives a flat list of outputs."""
        tensors = _from_dlpack(tensors)
        where = self._backend.tensors_there(tensors, self.input_names)
        held, sizes = self._held(tensors, where)
        with self._lock:
            plan = self.plan(sizes)
            outputs = [_new(_torch_of(tensors), plan.graph.type_of(v), where) for v in plan.graph.outputs]
            addresses = [address for _, _, address in held], [address for _, address in outputs]
            if where is None:
                plan.run(*addresses)
            else:
                with where:
                    plan.run(*addresses, on_device=True)
        return [tensor for tensor, _ in outputs]

    def run_committed(
        self, tensors: Sequence[Any], keep: bool = False, keep_bytes_max: int = KEPT_BYTES_MAX
    ) -> tuple[list[Any], Trace]:
        """Run on a flat list of inputs; a flat list of outputs, and the trace of the run."""
        from ree.commit.record import array_at
        from ree.commit.trace import Trace

        tensors = _from_dlpack(tensors)
        where = self._backend.tensors_there(tensors, self.input_names)
        tensors = tensors if where is None else where.on_host(tensors)
        held, sizes = self._held(tensors)
        declared = [i.type.dtype for i in self.graph.inputs]
        # copies, since the caller may change what he passed
        inputs = [np.array(array_at(a, d, shape, owner)) for (owner, shape, a), d in zip(held, declared, strict=True)]
        outputs, recording = self._record(inputs, sizes, _torch_of(tensors), keep, keep_bytes_max)
        outputs = outputs if where is None else where.from_host(outputs)
        manifest = recording.manifest(self.program_id, sizes, inputs, self.weight_ids)
        if keep:
            results = recording.results()
            return outputs, Trace(manifest, self, inputs, lambda: results)
        return outputs, Trace(manifest, self, inputs, lambda: self.results_of(manifest, inputs, keep_bytes_max))

    def results_of(
        self, manifest: Manifest, inputs: Sequence[np.ndarray], keep_bytes_max: int = KEPT_BYTES_MAX
    ) -> list[np.ndarray]:
        """The stages' results of a run on these inputs; VerificationError if the manifest commits to others."""
        held = list(inputs)  # read now, if they lie in a file, and alive until the run is over
        _, recording = self._record(held, manifest.sizes, None, True, keep_bytes_max)
        for number, (root, claimed) in enumerate(zip(recording.roots, manifest.roots, strict=True)):
            if root != claimed:
                found = f"a run of the program gives another result at stage {number}"
                raise VerificationError(f"the tensors of the trace cannot be had: {found}")
        return recording.results()

    def output_bytes(self, outputs: Sequence[Any]) -> list[bytes]:
        """The bytes of each of a run's outputs (C order, little endian)."""
        from ree.commit.record import array_at

        types = [self.graph.type_of(value) for value in self.graph.outputs]
        held = [_as_memory(output, type.dtype, "output") for output, type in zip(outputs, types, strict=True)]
        return [
            array_at(address, type.dtype, shape, owner).tobytes()
            for (owner, shape, address), type in zip(held, types, strict=True)
        ]

    def _record(
        self, inputs: Sequence[np.ndarray], sizes: tuple[int, ...], torch: Any, keep: bool, keep_bytes_max: int
    ) -> tuple[list[Any], Recording]:
        from ree.commit.record import Recording

        with self._lock:
            plan = self.plan(sizes)
            outputs = [_new(torch, plan.graph.type_of(v)) for v in plan.graph.outputs]
            recording = Recording(plan, self.stages(sizes), outputs, keep, keep_bytes_max)
            recording.run([array.ctypes.data for array in inputs])
        return [tensor for tensor, _ in outputs], recording

    def _held(
        self, tensors: Sequence[Any], where: TensorsThere | None = None
    ) -> tuple[list[tuple[Any, tuple[int, ...], int]], tuple[int, ...]]:
        """Inputs as memory, and the values of the program's symbols that their shapes mean."""
        self.check_weights()
        if len(tensors) != len(self.graph.inputs):
            raise InputError(f"the program takes {len(self.graph.inputs)} tensors, not {len(tensors)}")
        declared = [(i.type.dtype, i.name) for i in self.graph.inputs]
        if where is None:
            held = [
                _canonical(_as_memory(t, dtype, name), dtype)
                for t, (dtype, name) in zip(tensors, declared, strict=True)
            ]
        else:
            both = zip(tensors, declared, strict=True)
            held = [_torch_memory(where.torch, tensor, *told, where.align_bytes) for tensor, told in both]
        binding = self._bind([shape for _, shape, _ in held])
        return held, tuple(binding[name] for name in self.graph.symbols)

    def plan(self, binding: tuple[int, ...]) -> Any:
        """The plan for these values of the program's symbols (in their order)."""
        return self._kept_plan(self._backend, binding)

    def host_plan(self, binding: tuple[int, ...]) -> Plan:
        """The plan for these values on this machine's processor, whose groups can be run one by one."""
        found: Plan = self._kept_plan(backend_of(CPU), binding)
        return found

    def _kept_plan(self, backend: Backend, binding: tuple[int, ...]) -> Any:
        key = (backend, binding)
        if key not in self._plans:
            self._plans[key] = self.guarded(lambda: backend.plan(self.static(binding), self.weights))
            if len(self._plans) > BINDINGS_CACHED_MAX:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    @contextlib.contextmanager
    def locked_host_plan(self, binding: tuple[int, ...]) -> Iterator[Plan]:
        """`host_plan`, while nobody else runs it."""
        with self._lock:
            yield self.host_plan(binding)

    def streamed_plan(self, binding: tuple[int, ...], stream: Stream) -> Any:
        """A compiled plan of this causal program that keeps keys and values in the caller's memory."""
        with self._lock:
            plan = self._backend.plan(self.static(binding), self.weights, stream)
            plan.compile()
        return plan

    @property
    def packed_bytes(self) -> int:
        """Of the weights in the forms that kernels read, where the program runs."""
        return self._backend.packed_bytes(self.weights)

    def arena(self) -> Any:
        """Memory that plans which take turns may share."""
        return self._backend.arena()

    def state_memory(self, n_bytes: int) -> StateMemory:
        """Memory for a streamed plan's state, all zeros; MemoryError or LimitError if there is none."""
        return self._backend.state_memory(n_bytes)

    def _bind(self, shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
        """The symbols' values that these input shapes mean; ShapeError if they mean none."""
        binding: dict[str, int] = {}
        for declared, shape in zip(self.graph.inputs, shapes, strict=True):
            if len(declared.type.shape) != len(shape):
                raise ShapeError(f"input {declared.name} has shape {list(shape)}, the program takes {declared.type}")
            for extent, actual in zip(declared.type.shape, shape, strict=True):
                solved = dims.solve(extent, actual)
                if solved is not None:
                    binding.setdefault(*solved)
        for name, (low, high) in self.graph.symbols.items():
            if name not in binding:
                raise self._unbound(name, shapes)
            if not low <= binding[name] <= high:
                raise ShapeError(f"dynamic dimension {name} is {binding[name]}, not in {low}..{high}")
        for declared, shape in zip(self.graph.inputs, shapes, strict=True):
            try:
                expected = tuple(dims.evaluate(n, binding) for n in declared.type.shape)
            except (KeyError, ZeroDivisionError):
                raise ShapeError(f"input {declared.name}: {declared.type} has no value at {binding}") from None
            if expected != shape:
                raise ShapeError(f"input {declared.name} has shape {list(shape)}, the program takes {list(expected)}")
        return binding

    def _unbound(self, name: str, shapes: Sequence[tuple[int, ...]]) -> ShapeError:
        """The error for a dynamic dimension that these shapes give no value."""
        for declared, shape in zip(self.graph.inputs, shapes, strict=True):
            if any(name in dims.symbols(extent) for extent in declared.type.shape):
                return ShapeError(f"input {declared.name} has shape {list(shape)}, the program takes {declared.type}")
        return ShapeError(f"no input gives the dynamic dimension {name}")

    # -- description ------------------------------------------------------------------------
    # -- files ----------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program with its weights to a `.ree` file."""
        self.check_weights()
        file.save(path, self.graph, self.input_structure, self.output_structure)


def load(path: str | os.PathLike[str], device: str = CPU) -> Program:
    """Read a `.ree` file; needs no torch. FormatError if it is none or was altered; device: as for `Program.to`."""
    backend_of(device)  # first, since it is cheap
    graph, inputs, outputs = file.load(path)
    return Program(graph, inputs, outputs, trusted=False, device=device)


def _from_dlpack(tensors: Sequence[Any]) -> list[Any]:
    """Tensors of other libraries as torch's, over the same memory, where torch is there."""
    torch = sys.modules.get("torch")
    known = (np.ndarray, np.generic) if torch is None else (np.ndarray, np.generic, torch.Tensor)
    return [
        torch.from_dlpack(t) if torch is not None and not isinstance(t, known) and hasattr(t, "__dlpack__") else t
        for t in tensors
    ]


def _torch_of(tensors: Sequence[Any]) -> Any:
    """The torch module if outputs are to be torch tensors: if any input is one."""
    torch = sys.modules.get("torch")
    if torch is not None and (not tensors or any(isinstance(t, torch.Tensor) for t in tensors)):
        return torch
    return None


def _as_memory(tensor: Any, dtype: DType, name: str) -> tuple[Any, tuple[int, ...], int]:
    """(object that keeps the memory, shape, address) of an input as C-contiguous CPU memory."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _torch_memory(torch, tensor, dtype, name)
    if not isinstance(tensor, np.ndarray | np.generic):
        raise InputError(f"input {name} is a {type(tensor).__name__}, not a tensor")
    if isinstance(tensor, np.ma.MaskedArray):
        raise InputError(f"input {name} is a masked array; pass x.filled(value), with a value for what the mask hides")
    if isinstance(tensor, np.ndarray) and type(tensor) not in (np.ndarray, np.memmap):
        kind = type(tensor).__name__  # what its elements mean is not known here
        raise InputError(f"input {name} is a {kind}; pass a plain array: numpy.asarray(x)")
    array = np.ascontiguousarray(tensor).reshape(np.shape(tensor))
    if array.dtype != np.dtype(dtype.numpy):
        raise DTypeError(f"input {name} is {array.dtype}, the program takes {_in_numpy(dtype)}")
    return array, tuple(array.shape), array.ctypes.data


def _canonical(held: tuple[Any, tuple[int, ...], int], dtype: DType) -> tuple[Any, tuple[int, ...], int]:
    """The same memory, or, of bools some of whose bytes are neither 0 nor 1, a copy in which those are 1."""
    from ree.commit.record import array_at

    owner, shape, address = held
    if dtype is not DType.BOOL:
        return held
    bytes = array_at(address, DType.U8, shape, owner)
    if bytes.max(initial=0) <= 1:
        return held
    array = np.ascontiguousarray(bytes != 0)
    return array, shape, array.ctypes.data


def _torch_memory(
    torch: Any, tensor: Any, dtype: DType, name: str, align_bytes: int = 1
) -> tuple[Any, tuple[int, ...], int]:
    from ree.capture import to_torch_dtype

    if tensor.is_nested or tensor.layout != torch.strided:
        raise InputError(f"input {name} is not a dense tensor")
    if tensor.dtype != to_torch_dtype(dtype):
        raise DTypeError(f"input {name} is {tensor.dtype}, the program takes {dtype.value}")
    # a class with a meaning of its own (torch.masked, a fake tensor) has no memory, or memory that means something else
    own_meaning = type(tensor).__torch_dispatch__ != torch.Tensor.__torch_dispatch__
    plain = tensor.detach().resolve_neg().contiguous()
    try:
        address = 0 if own_meaning else plain.data_ptr()
    except RuntimeError:  # inside torch.func.vmap
        own_meaning, address = True, 0
    if own_meaning or (not address and plain.numel()):
        kind = type(tensor).__name__
        raise InputError(
            f"input {name} is a {kind} whose memory cannot be read; pass a plain tensor, outside torch.func"
        )
    if address % align_bytes:
        plain = plain.clone()
    return plain, tuple(plain.shape), plain.data_ptr()


def _in_numpy(dtype: DType) -> str:
    return "bf16, which NumPy has not: its bits as uint16, or a torch tensor" if dtype is DType.BF16 else dtype.value


def _new(torch: Any, type: TensorType, where: TensorsThere | None = None) -> tuple[Any, int]:
    """A new output (torch tensor or array) and its address."""
    shape = type.extents()
    if torch is not None:
        from ree.capture import to_torch_dtype

        device = "cpu" if where is None else where.name
        tensor = torch.empty(shape, dtype=to_torch_dtype(type.dtype), device=device)
        return tensor, tensor.data_ptr()
    array = np.empty(shape, type.dtype.numpy)
    return array, array.ctypes.data
