"""A CUDA device: digests against the CPU's, then matrix products, models, attention, decoding, commitments, hashing.

One call fills the table of docs/GPU.md: `python benchmarks/gpu.py` on a machine with a GPU, gcc, torch with CUDA for
the peers, and the packages of `pip install .[cuda,hf]`; kernels for the CPU are built in place where there are none.
Times are medians of runs by the device's events, ours and the peer's in turn, the second cache flushed before each.
`--emulate` runs all of it in small on the emulated device, where times mean nothing.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import ROOT, arguments, table, write

FLUSH_BYTES = 256 << 20  # beyond every second cache
COPY_BYTES = 1 << 30
CUBES = (1024, 2048, 4096, 8192)
SKINNY = (1, 2, 4, 8, 16, 32, 64)
TARGETS = {  # what the figure should be: at least (positive) or at most (negative)
    "matmul": 0.85, "matvec": 0.85, "model": -1.0, "int8": 4.0, "decode": 0.6, "attention": -0.8, "commit": -3.0,
    "blake3": 100.0,
}  # fmt: skip


class Bench:
    """A device, the peer on it if there is one, and the rows of the table."""

    def __init__(self, device: Any, rounds: int, small: bool) -> None:
        self.device, self.rounds, self.small = device, rounds, small
        self.torch = _torch_with_cuda()
        self.rows: list[dict[str, Any]] = []
        self._flush = device.allocate(1 << 20 if small else FLUSH_BYTES)

    # -- time ---------------------------------------------------------------------------------
    def ours_ms(self, run: Callable[[], object]) -> float:
        """Milliseconds of one run on our stream, the second cache flushed before."""
        self.device.fill(self._flush.address, 0, self._flush.n_bytes)
        if hasattr(self.device, "time"):
            return float(self.device.time(run, 1)[0])
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    def peers_ms(self, run: Callable[[], object]) -> float:
        """The same on torch's stream."""
        torch = self.torch
        self.device.synchronize()
        torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def medians(self, ours: Callable[[], object], peer: Callable[[], object] | None) -> tuple[float, float | None]:
        """Medians of interleaved runs; the first of each is not counted."""
        peer = peer if self.torch is not None else None
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(self.rounds + 1):
            times[0].append(self.ours_ms(ours))
            if peer is not None:
                times[1].append(self.peers_ms(peer))
        return statistics.median(times[0][1:]), statistics.median(times[1][1:]) if peer is not None else None

    def row(self, kind: str, name: str, figure: float | None, **details: Any) -> None:
        target = TARGETS[kind]
        met = None if figure is None or self.small else figure >= target if target > 0 else figure <= -target
        self.rows.append({"kind": kind, "name": name, "figure": figure, "target": target, "met": met, **details})
        print(f"{kind:10} {name:44} {'-' if figure is None else f'{figure:.3f}'}", flush=True)

    # -- programs ---------------------------------------------------------------------------------
    def replay(self, program: Any, inputs: Any) -> Callable[[], object]:
        """The launches of a static program over memory that is on the device already."""
        program.run_flat(inputs)  # compiles, and puts the inputs there
        return _Running(program, program.plan(()).recorded())

    def committed(self, program: Any, inputs: Any) -> Callable[[], object]:
        program.run_committed(inputs)
        return _Running(program, program.plan(()).recorded(committed=True))

    def copy_gb_s(self) -> float:
        """Bytes a second that a copy on the device reads and writes."""
        n_bytes = 1 << 20 if self.small else COPY_BYTES
        source, target = self.device.allocate(n_bytes), self.device.allocate(n_bytes)
        self.device.fill(source.address, 0, n_bytes)
        ms, _ = self.medians(lambda: self.device.copy(target.address, source.address, n_bytes), None)
        return 2 * n_bytes / ms / 1e6


class _Running:
    """A recording, with the program whose memory it works on."""

    def __init__(self, program: Any, recorded: Any) -> None:
        self.program, self.recorded = program, recorded

    def __call__(self) -> None:
        self.recorded.run()


def _torch_with_cuda() -> Any:
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            return torch
    return None


def compiled(model: Any, *inputs: Any) -> Any:
    import ree

    return ree.compile(model.eval(), inputs, device="cuda")


# -- what is measured -----------------------------------------------------------------------------
def products(b: Bench, copy_gb_s: float) -> None:
    """fp32 products against cuBLAS without TF32; with one row, the share of the copy's bandwidth."""
    import torch

    shapes = [(n, n, n) for n in CUBES] + [(4096, 4096, 14336)] + [(m, 4096, 4096) for m in SKINNY]
    for m, n, k in [(64, 64, 64), (1, 64, 64)] if b.small else shapes:
        linear, x = torch.nn.Linear(k, n, bias=False), torch.randn(m, k)
        run = b.replay(compiled(linear, x), [x])
        peer = None
        if b.torch is not None:
            there, matrix = x.cuda(), linear.weight.detach().cuda()
            peer = lambda there=there, matrix=matrix: torch.mm(there, matrix.T)  # noqa: E731
        ours, theirs = b.medians(run, peer)
        tflop_s = 2 * m * n * k / ours / 1e9
        b.row("matmul", f"{m} x {n} x {k}", theirs / ours if theirs else None, ms=ours, peer_ms=theirs, tflop_s=tflop_s)
        if m == 1:
            b.row("matvec", f"{n} x {k}", 4 * n * k / ours / 1e6 / copy_gb_s, ms=ours)


def int8_layers(b: Bench) -> None:
    """int8 products against our own in fp32."""
    import torch

    from ree.lm.quantise import quantise

    for m, n, k in [(64, 64, 64)] if b.small else [(512, 4096, 4096), (2048, 4096, 14336), (4096, 4096, 4096)]:
        linear, x = torch.nn.Linear(k, n, bias=False), torch.randn(m, k)
        program = compiled(linear, x)
        narrow = _rewritten(program, quantise)
        wide_ms, _ = b.medians(b.replay(program, [x]), None)
        ours, _ = b.medians(b.replay(narrow, [x]), None)
        b.row("int8", f"{m} x {n} x {k}", wide_ms / ours, ms=ours, fp32_ms=wide_ms)


def _rewritten(program: Any, rewrite: Callable[[Any], Any]) -> Any:
    from ree.program import Program

    return Program(rewrite(program.graph), program.input_structure, program.output_structure, device="cuda")


def models(b: Bench) -> None:
    """Forward passes against torch eager, and what committing to them costs."""
    import torch
    import zoo

    names = ("mlp",) if b.small else ("gpt2", "bert", "resnet50")
    cases = [zoo.mlp(64, 1, 4)] if b.small else [zoo.CASES[name]() for name in names]
    for case in cases:
        _model(b, case.name, case.module, case.inputs, commit=case.name in ("gpt2", "mlp"))
    if not b.small:
        from lm_models import MODELS
        from transformers import LlamaConfig, LlamaForCausalLM

        from ree.loaders import wrapped

        module = wrapped(LlamaForCausalLM(LlamaConfig(**MODELS["B"][1])).eval(), ("input_ids",))
        _model(b, "llama 1.1 B", module, (torch.randint(0, 32000, (1, 512)),), commit=True)


def _model(b: Bench, name: str, module: Any, inputs: tuple[Any, ...], commit: bool) -> None:
    import torch

    program = compiled(module, *inputs)
    run, peer = b.replay(program, inputs), None
    if b.torch is not None:
        there, given = module.cuda(), [x.cuda() for x in inputs]

        def peer() -> None:
            with torch.no_grad():
                there(*given)

    ours, theirs = b.medians(run, peer)
    b.row("model", name, ours / theirs if theirs else None, ms=ours, peer_ms=theirs)
    if commit:
        plain, hashed = [], []
        other = b.committed(program, inputs)
        for _ in range(b.rounds):
            plain.append(b.ours_ms(run))
            hashed.append(b.ours_ms(other))
        share = 100 * (statistics.median(hashed) / statistics.median(plain) - 1)
        b.row("commit", f"{name}, %", share, ms=statistics.median(hashed))
    module.cpu()


def attention(b: Bench) -> None:
    """Attention in fp32 against torch's own that is not fused."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    class Attention(torch.nn.Module):
        def __init__(self, causal: bool) -> None:
            super().__init__()
            self.causal = causal

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return sdpa(q, k, v, is_causal=self.causal)

    heads, t = (2, 40) if b.small else (32, 2048)
    for causal in (False, True):
        model, qkv = Attention(causal), [torch.randn(1, heads, t, 64) for _ in range(3)]
        run, peer = b.replay(compiled(model, *qkv), qkv), None
        if b.torch is not None:
            there = [x.cuda() for x in qkv]

            def peer(there: Any = there, causal: bool = causal) -> None:
                from torch.nn.attention import SDPBackend, sdpa_kernel

                with sdpa_kernel(SDPBackend.MATH):
                    sdpa(*there, is_causal=causal)

        ours, theirs = b.medians(run, peer)
        name = f"{heads} heads, {t} keys{', causal' if causal else ''}"
        b.row("attention", name, ours / theirs if theirs else None, ms=ours, peer_ms=theirs)


def decoding(b: Bench, copy_gb_s: float) -> None:
    """Tokens a second of a language model that decodes one by one: the share of the bandwidth that its weights take."""
    from lm_models import make

    from ree.lm.engine import Row
    from ree.lm.model import LanguageModel

    with tempfile.TemporaryDirectory() as directory:
        for name, dtype in (("tiny", "fp32"),) if b.small else (("B", "bf16"), ("B", "int8"), ("A", "fp32")):
            model = LanguageModel.open(make(name, Path(directory)), dtype, cached=False, device="cuda")
            engine, tokens = model.engine(context=512), 4 if b.small else 128
            slot = engine.open()
            engine.step([Row(1, n, slot, n == 31) for n in range(32)])
            engine.step([Row(1, 32, slot, True)])
            start = time.perf_counter()
            for n in range(tokens):
                engine.step([Row(2 + n, 33 + n, slot, True)])
            seconds = (time.perf_counter() - start) / tokens
            read = model.program.packed_bytes
            share = read / seconds / 1e9 / copy_gb_s
            b.row("decode", f"{name} in {dtype}", share, tokens_s=1 / seconds, gb_s=read / seconds / 1e9)


def hashing(b: Bench) -> None:
    """BLAKE3 of a large buffer, in GB a second."""
    from ree.device.hashing import recorded

    n_bytes = 1 << 20 if b.small else 1 << 30
    memory = b.device.allocate(n_bytes)
    b.device.fill(memory.address, 7, n_bytes)
    replay, _ = recorded(b.device, memory.address, n_bytes)
    ours, _ = b.medians(replay.run, None)
    b.row("blake3", f"{n_bytes >> 20} MiB, GB/s", n_bytes / ours / 1e6, ms=ours)


# -- the whole ------------------------------------------------------------------------------------
def digests(quick: bool) -> list[str]:
    """Names of the proof's cases whose digests differ from those that were made on the CPU."""
    from tools.device.__main__ import DIGESTS, check

    return check(quick, json.loads(DIGESTS.read_text()))


def build() -> None:
    """Compile the processor's kernels in place where they are not there: a copy of the sources is enough."""
    import ree_kernels.cpu as cpu
    from ree_kernels import KernelError
    from ree_kernels import build as builder

    try:
        cpu.runtime()
    except KernelError:
        builder.main([])


@contextlib.contextmanager
def chosen_device(emulate: bool) -> Iterator[Any]:
    from ree_kernels import cuda

    if not emulate:
        yield cuda.device()
        return
    from tools.emulator import device as emulator

    with cuda.use(emulator.shared()) as device:
        yield device


def described(device: Any) -> dict[str, Any]:
    torch = _torch_with_cuda()
    return {
        "name": device.name,
        "target": device.target,
        "compiler": device.compiler,
        "multiprocessors": device.multiprocessors,
        "memory_bytes": device.memory_bytes,
        "peer": f"torch {torch.__version__}" if torch is not None else None,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--emulate", action="store_true", help="everything in small, on the emulated device")
    parser.add_argument("--no-digests", action="store_true", help="measure only")
    options = parser.parse_args()
    small = options.emulate or options.quick
    options.quick = small
    build()
    with chosen_device(options.emulate) as device:
        wrong = [] if options.no_digests else digests(small)
        b = Bench(device, 1 if small else 15, small)
        copy_gb_s = b.copy_gb_s()
        products(b, copy_gb_s)
        attention(b)
        int8_layers(b)
        hashing(b)
        decoding(b, copy_gb_s)
        models(b)
        result = {"device": described(device), "copy_gb_s": copy_gb_s, "different": wrong, "rows": b.rows}
    path = write("gpu", result, options)
    head = ("figure", "", "ours", "target", "met")
    shown = table(head, [(r["kind"], r["name"], r["figure"], r["target"], r["met"]) for r in b.rows])
    print(shown)
    if path is not None:
        path.with_suffix(".md").write_text(shown + "\n")
    if wrong:
        raise SystemExit(f"digests differ from the CPU's: {', '.join(wrong)}")


if __name__ == "__main__":
    _ = ROOT  # the scripts' imports are from the checkout
    main()
