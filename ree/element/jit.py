"""Compile element programs to machine code, keep it on disk, load it.

The code of a kernel is a function of the program, its layout and the ISA, never of sizes,
so that equal layers of a model, and the next process, share it. llvmlite is imported when
the first kernel is asked for.
"""

from __future__ import annotations

import functools
import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from ree import cache
from ree.element.encode import digest
from ree.element.llvm import PRINTER_VERSION, Layout, print_module
from ree.element.llvm_ops import Target
from ree.element.program import Program
from ree.errors import DeviceError
from ree_kernels import cpu as native

_MAGIC = b"REEOBJ1\n"
# what ree_kernels/c/pool.c asks of a processor, and F16C, which all that have AVX2 and FMA have
_FEATURES = {
    ("x86_64", "portable"): "+sse2",
    ("x86_64", "avx2"): "+avx2,+fma,+f16c",
    ("x86_64", "avx512"): "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx2,+fma,+f16c",
    ("aarch64", "portable"): "+neon",
    ("aarch64", "neon"): "+neon",
    ("riscv64", "portable"): "+m,+a,+f,+d,+c",
}
_CPU = {"x86_64": "x86-64", "aarch64": "generic", "riscv64": "generic-rv64"}


@dataclass(frozen=True)
class Kernel:
    """Machine code in memory: `address` is a `ree_kernel` of ree_kernels/c/abi.h while this lives."""

    name: str
    address: int
    engine: Any = field(repr=False, compare=False)


# -- targets ------------------------------------------------------------------------------
def isas() -> list[str]:
    """The ISAs that this processor runs, the best one last (as ree_kernels names them)."""
    return native.supported()


def default_isa() -> str:
    """REE_ISA, or the best ISA of this processor; DeviceError if it lacks the one that is asked for."""
    return os.environ.get(native.ISA_VARIABLE) or isas()[-1]


def target_of(triple: str, cpu: str = "", features: str = "") -> Target:
    """What to print for a triple: which instructions the code may count on."""
    names = features.split(",")
    x86 = triple.startswith("x86_64")
    arm = triple.startswith("aarch64")
    return Target(
        triple=triple,
        cpu=cpu,
        features=features,
        abi="lp64d" if triple.startswith("riscv64") else "",
        masks=x86 and "+avx512vl" in names,
        rounds=arm or (x86 and "+avx2" in names),
        halves=arm or (x86 and "+f16c" in names),
    )


@functools.cache
def host_target(isa: str) -> Target:
    """The target of an ISA of this processor; DeviceError if it lacks it."""
    if isa not in isas():
        raise DeviceError(f"no ISA {isa!r} here: this processor runs {', '.join(isas())}")
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return machine_target(machine, isa)


def machine_target(machine: str, isa: str) -> Target:
    """The target of an ISA of any machine (x86_64, aarch64, riscv64); DeviceError if it has no such ISA."""
    if (machine, isa) not in _FEATURES:
        raise DeviceError(f"no code is printed for {machine} {isa}")
    return target_of(f"{machine}-unknown-linux-gnu", _CPU[machine], _FEATURES[machine, isa])


@functools.cache
def _llvm() -> Any:
    """llvmlite.binding, ready for this processor."""
    import llvmlite.binding as binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


# -- compilation -----------------------------------------------------------------------------
@functools.cache
def _machine(target: Target) -> Any:
    binding = _llvm()
    if not target.triple.startswith(platform.machine()):
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
    return binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small", abiname=target.abi
    )


def _optimise(module: Any, machine: Any) -> None:
    """A short pipeline: the printer has hoisted and vectorised; LLVM's standard one takes six times as long."""
    builder = _llvm().create_pass_builder(machine, _llvm().create_pipeline_tuning_options())
    passes = _llvm().create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    passes.add_new_gvn_pass()
    passes.add_instruction_combine_pass()
    passes.run(module, builder)


def _compile(name: str, program: Program, layout: Layout, target: Target) -> Any:
    binding = _llvm()
    module = binding.parse_assembly(print_module([(name, program, layout)], target))
    machine = _machine(target)
    module.data_layout = str(machine.target_data)
    module.verify()
    _optimise(module, machine)
    return module


def emit_object(
    program: Program, layout: Layout, triple: str, cpu: str = "", features: str = "", name: str = "ree_kernel"
) -> bytes:
    """The relocatable object of one kernel, function `name`, for any processor that LLVM knows."""
    target = target_of(triple, cpu, features)
    return bytes(_machine(target).emit_object(_compile(name, program, layout, target)))


def emit_assembly(program: Program, layout: Layout, isa: str | None = None) -> str:
    """The assembly of one kernel, for people and tests."""
    target = host_target(isa or default_isa())
    return str(_machine(target).emit_assembly(_compile("ree_kernel", program, layout, target)))


# -- kernels ----------------------------------------------------------------------------------
_kernels: dict[bytes, Kernel] = {}
_lock = threading.Lock()


def _renew_lock() -> None:
    """In a forked child: the thread that held the lock is not there to release it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def compile_kernel(program: Program, layout: Layout, isa: str | None = None) -> Kernel:
    """The kernel of a program; see `compile_kernels`."""
    return compile_kernels([(program, layout)], isa)[0]


def compile_kernels(programs: Sequence[tuple[Program, Layout]], isa: str | None = None) -> list[Kernel]:
    """Kernels from memory, from disk or from the compiler, in this order.

    isa: one of `isas()`, or None for `default_isa()`. Raises GraphError for a program that
    a kernel cannot express, DeviceError for an ISA that this processor lacks.
    """
    target = host_target(isa or default_isa())
    keys = [cache_key(program, layout, target) for program, layout in programs]
    with _lock:
        missing: dict[bytes, bytes] = {}
        for key, (program, layout) in zip(keys, programs, strict=True):
            if key not in _kernels and key not in missing:
                missing[key] = _object(key, program, layout, target)
        if missing:
            _load(missing, target)
        return [_kernels[key] for key in keys]


def cache_key(program: Program, layout: Layout, target: Target) -> bytes:
    """Everything that the code depends on, hashed."""
    import llvmlite

    where = [f"printer {PRINTER_VERSION}", f"llvmlite {llvmlite.__version__}", target.text, layout.text]
    what = digest(program) + "\0".join(where).encode()
    return blake3(what, derive_key_context="ree v1 kernel cache").digest()


def _name(key: bytes) -> str:
    return f"ree_{key.hex()[:32]}"


def _object(key: bytes, program: Program, layout: Layout, target: Target) -> bytes:
    found = read_cached(key)
    if found is None:
        found = bytes(_machine(target).emit_object(_compile(_name(key), program, layout, target)))
        write_cached(key, found)
    return found


def _load(objects: dict[bytes, bytes], target: Target) -> None:
    """Link objects into one engine and remember their kernels."""
    binding = _llvm()
    if "fma" not in target.features:
        binding.load_library_permanently("libm.so.6")  # fma and fmaf, exact by IEEE 754
    # a fresh machine: the engine becomes its owner
    machine = binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, reloc="pic", codemodel="small", abiname=target.abi
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(f'target triple = "{target.triple}"'), machine)
    for code in objects.values():
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    for key in objects:
        _kernels[key] = Kernel(_name(key), int(engine.get_function_address(_name(key))), engine)


# -- the cache on disk ---------------------------------------------------------------------------
def _path(key: bytes) -> Path:
    return cache.directory() / f"{key.hex()}.o"


def read_cached(key: bytes) -> bytes | None:
    """The object stored under a key; None if there is none or the file is not what was written."""
    return cache.read(_path(key), _MAGIC, key)


def write_cached(key: bytes, code: bytes) -> None:
    """Store an object under a key; a cache that cannot be written is no error."""
    cache.write(_path(key), _MAGIC, key, code)
