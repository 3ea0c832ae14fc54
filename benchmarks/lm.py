"""Language models: decoding, reading prompts, batches, receipts and their verification, beside torch and the memory.

Two Llama-like models with seeded random weights: A has 125 M parameters in float32, B 1.1 G in bfloat16. Engines take
turns in one process; times are medians. The memory's read bandwidth is that of a plain loop on all threads.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, table, write
from lm_models import in_torch, make

PROMPT = 32
BATCH = 8
READ_BYTES = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """Tokens that are decoded, read as a prompt, and generated to be verified; how often each is done."""

    new: int
    prefill: int
    verified: int
    rounds: int


SIZES = {"A": Sizes(128, 512, 256, 7), "B": Sizes(32, 512, 96, 3), "tiny": Sizes(12, 40, 12, 2)}


def median_of(run: Callable[[], float], rounds: int) -> float:
    return statistics.median(run() for _ in range(rounds))


def read_gb_s(threads: int) -> float:
    """Bytes a second of loops that read memory front to back, one on each thread, together."""
    from ree_kernels import cpu

    kernels, runtime = cpu.kernels(), cpu.runtime()
    memory = cpu.allocate(READ_BYTES)
    array = np.frombuffer(runtime.ffi.buffer(memory, READ_BYTES), np.float32)
    array.fill(0)
    share = len(array) // threads
    parts = [kernels.ffi.cast("float *", array[n * share :].ctypes.data) for n in range(threads)]

    def once() -> float:
        workers = [threading.Thread(target=kernels.lib.ree_bench_read, args=(part, share)) for part in parts]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return READ_BYTES / (time.perf_counter() - start) / 1e9

    return max(once() for _ in range(7))


class Bench:
    """One model in one dtype."""

    def __init__(self, folder: Path, dtype: str, sizes: Sizes, threads: int) -> None:
        import ree
        from ree.lm.model import LanguageModel

        ree.threads(threads)
        self.rounds, self.new, self.verified = sizes.rounds, sizes.new, sizes.verified
        start = time.perf_counter()
        self.model = LanguageModel.open(folder, dtype)
        self.engine = self.model.engine(slots=BATCH)
        self.open_s = time.perf_counter() - start
        vocab = self.model.vocab_size
        rng = np.random.default_rng(0)
        self.prompts = [rng.integers(2, vocab, PROMPT).tolist() for _ in range(BATCH)]
        self.text = rng.integers(2, vocab, sizes.prefill).tolist()

    def weights_bytes(self) -> int:
        """Bytes of packed weights that one step reads."""
        return self.model.program.weights.packed_bytes

    def generate(self, new: int, records: Any = None) -> Any:
        from ree.lm.generate import Wanted, generate

        return generate(self.engine, self.model.folder.tokenizer, Wanted(self.prompts[0], max_new_tokens=new), records)

    def decode_s(self) -> float:
        """Seconds for a token after the first."""
        return float(self.generate(self.new).decode_s / (self.new - 1))

    def recorded_s(self) -> float:
        recorder = self.recorder(self.new)
        start = time.perf_counter()
        found = self.generate(self.new, recorder)
        recorder.finish(found.reason)
        return (time.perf_counter() - start - found.prefill_s) / (self.new - 1)

    def recorder(self, new: int) -> Any:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from ree.commit.keys import Signer
        from ree.lm.generation import Recorder
        from ree.lm.sample import Sampling

        signer = Signer(Ed25519PrivateKey.generate())
        return Recorder(self.model.binding(False), self.prompts[0], Sampling(), new, (), (), signer)

    def prefill_s(self) -> float:
        from ree.lm.engine import Row

        slot = self.engine.open()
        last = len(self.text) - 1
        start = time.perf_counter()
        self.engine.step([Row(token, n, slot, n == last) for n, token in enumerate(self.text)])
        taken = time.perf_counter() - start
        self.engine.close(slot)
        return taken

    def verify(self) -> dict[str, float]:
        """Generating tokens with a receipt, and checking that by one pass."""
        from ree.lm import check

        recorder = self.recorder(self.verified)
        made, checked = [], []
        for _ in range(max(2, self.rounds // 2)):
            recorder = self.recorder(self.verified)
            start = time.perf_counter()
            found = self.generate(self.verified, recorder)
            _, envelope = recorder.finish(found.reason)
            made.append(time.perf_counter() - start)
            checked.append(self._check(check, envelope, recorder.salt))
        generated, verified = statistics.median(made), statistics.median(checked)
        return {"generate_s": generated, "verify_s": verified, "ratio": generated / verified}

    def _check(self, check: Any, envelope: bytes, salt: bytes) -> float:
        bench = self

        class Held:
            """The model with the engine that is there already."""

            def __getattr__(self, name: str) -> Any:
                return getattr(bench.model, name)

            def engine(self, slots: int = 1) -> Any:
                return bench.engine

        start = time.perf_counter()
        check.verify(envelope, Held(), self.prompts[0], salt=salt, trusted_keys=None)
        return time.perf_counter() - start

    def freivalds(self) -> dict[str, float]:
        """Checking a disclosed trace without its products, beside one pass again and generating again (seconds)."""
        from ree.freivalds.trace import check_trace
        from ree.lm import tracing

        prompt, program = self.prompts[0], self.model.program
        start = time.perf_counter()
        tokens = self.generate(self.verified).tokens
        generated = time.perf_counter() - start
        inputs, trace = tracing.inputs_of(prompt, tokens), tracing.run(program, prompt, tokens)
        runs: dict[str, list[float]] = {"check_s": [], "pass_s": []}
        for round_number in range(self.rounds + 1):
            start = time.perf_counter()
            program.run_flat(inputs)
            passed = time.perf_counter()
            check_trace(trace)
            if round_number:
                runs["pass_s"].append(passed - start)
                runs["check_s"].append(time.perf_counter() - passed)
        times = {name: statistics.median(taken) for name, taken in runs.items()}
        return {
            **times,
            "generate_s": generated,
            "check_to_pass": times["check_s"] / times["pass_s"],
            "check_to_generate": times["check_s"] / generated,
        }

    def batch_gain(self) -> float:
        """Tokens a second of BATCH requests at once over those of one after another."""
        together = median_of(lambda: self._serve(BATCH), max(2, self.rounds // 2))
        single = median_of(lambda: sum(self._serve(1) for _ in range(BATCH)), max(2, self.rounds // 3))
        return single / together

    def _serve(self, count: int) -> float:
        """Seconds until so many requests are answered by the server's scheduler."""
        from ree.lm.batch import Batch
        from ree.lm.sample import Sampler, Sampling
        from ree.lm.ticket import Ended, Job

        batch = Batch(self.engine)
        batch.start()
        done = threading.Semaphore(0)
        start = time.perf_counter()
        tickets = []
        for prompt in self.prompts[:count]:
            sampler = Sampler(self.model.vocab_size, Sampling(), prompt)
            job = Job(prompt, self.new, sampler, self.model.text(prompt, ()), _Silent())
            tickets.append(batch.submit(job, done.release))
        left = set(range(count))
        while left:
            done.acquire(timeout=1)
            left -= {n for n in left if any(isinstance(event, Ended) for event in tickets[n].take())}
        taken = time.perf_counter() - start
        batch.stop()
        return taken


class _Silent:
    """A recorder of nothing."""

    def step(self, position: int, token: int, logits: np.ndarray) -> None:
        return None

    def finish(self, reason: str) -> tuple[str, bytes]:
        return "", b""


def torch_figures(folder: Path, dtype: str, bench: Bench, onnx: bool) -> dict[str, float]:
    """Decoding and reading a prompt in torch eager (and onnxruntime), in turns with ree."""
    import torch

    torch.set_num_threads(2)
    model = in_torch(folder, dtype)
    prompt, text = torch.tensor([bench.prompts[0]]), torch.tensor([bench.text])

    def decode() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            model(prompt, use_cache=True, logits_to_keep=1)
            read = time.perf_counter()
            model.generate(prompt, max_new_tokens=bench.new, min_new_tokens=bench.new, do_sample=False, pad_token_id=0)
            return (time.perf_counter() - read - (read - start)) / (bench.new - 1)

    def prefill() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            model(text, use_cache=True, logits_to_keep=1)
            return time.perf_counter() - start

    runs: dict[str, Callable[[], float]] = {
        "ree_decode_s": bench.decode_s, "torch_decode_s": decode, "ree_prefill_s": bench.prefill_s,
        "torch_prefill_s": prefill,
    }  # fmt: skip
    if onnx and (run := onnxruntime_prefill(model, text)) is not None:
        runs["onnxruntime_prefill_s"] = run
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(bench.rounds + 1):
        for name, run in runs.items():
            taken = run()
            if round_number:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def onnxruntime_prefill(model: Any, text: Any) -> Callable[[], float] | None:
    """A run of the prompt without a cache in onnxruntime; None if the model cannot be exported."""
    import torch

    from ree import peers

    if "onnxruntime" not in peers.available():
        return None

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Any) -> Any:
            return self.model(tokens, use_cache=False, logits_to_keep=1).logits

    try:
        engine = peers.make("onnxruntime", Last().eval(), (text,), 2)
    except Exception as error:  # the exporter's, of many classes
        print(f"onnxruntime: not exported ({type(error).__name__})")
        return None

    def run() -> float:
        start = time.perf_counter()
        engine.run()
        return time.perf_counter() - start

    return run


def measure(name: str, folder: Path, dtypes: tuple[str, ...], options: Any) -> dict[str, Any]:
    """All figures of one model: for each dtype, and beside torch in the folder's own."""
    found: dict[str, Any] = {}
    for dtype in dtypes:
        bench = Bench(folder, dtype, SIZES[name], options.threads)
        bench.generate(4)
        bench.prefill_s()
        read = read_gb_s(options.threads)
        figures: dict[str, Any] = {"open_s": bench.open_s, "weights_bytes": bench.weights_bytes(), "read_gb_s": read}
        if dtype == dtypes[0]:
            figures |= torch_figures(folder, "float32" if dtype == "fp32" else "bfloat16", bench, name != "B")
        else:
            figures["ree_decode_s"] = median_of(bench.decode_s, bench.rounds)
            figures["ree_prefill_s"] = median_of(bench.prefill_s, bench.rounds)
        decode_s = figures["ree_decode_s"]
        pairs = [(bench.decode_s(), bench.recorded_s()) for _ in range(bench.rounds)]
        figures |= {
            "tokens_s": 1 / decode_s,
            "receipt_overhead": statistics.median(b / a for a, b in pairs) - 1,
            "verify": bench.verify(),
            "batch_gain": bench.batch_gain(),
            "freivalds": bench.freivalds() if dtype == "int8" else None,
        }
        found[dtype] = figures
        del bench
        gc.collect()
    return found


def _add_shares(models: dict[str, Any]) -> None:
    """Shares of the read bandwidth: the best that any of the loops saw, since it is the machine's, not a model's."""
    every = [figures for found in models.values() for figures in found.values()]
    best = max(figures["read_gb_s"] for figures in every)
    for figures in every:
        figures["bandwidth_share"] = figures["weights_bytes"] / figures["ree_decode_s"] / 1e9 / best


HEAD = (
    "model", "tokens/s", "x torch", "% of read", "read GB/s", "prefill s", "/ torch", "/ ort", "generate / verify",
    "batch of 8 x", "receipt + %", "Freivalds / generate", "/ pass",
)  # fmt: skip


def _row(name: str, f: dict[str, Any]) -> list[object]:
    def over(part: str, whole: str) -> float | None:
        return f[part] / f[whole] if whole in f else None

    freivalds = f["freivalds"] or {}
    return [
        name, f["tokens_s"], 1 / ratio if (ratio := over("ree_decode_s", "torch_decode_s")) else None,
        100 * f["bandwidth_share"], f["read_gb_s"], f["ree_prefill_s"], over("ree_prefill_s", "torch_prefill_s"),
        over("ree_prefill_s", "onnxruntime_prefill_s"), f["verify"]["ratio"], f["batch_gain"],
        100 * f["receipt_overhead"], freivalds.get("check_to_generate"), freivalds.get("check_to_pass"),
    ]  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, help="where model folders lie, or are written and stay")
    parser.add_argument("--models", nargs="*", choices=("tiny", "A", "B"))
    options = parser.parse_args()
    names = options.models or (("tiny",) if options.quick else ("A", "B"))
    dtypes = {"tiny": ("fp32", "int8"), "A": ("fp32", "bf16", "int8"), "B": ("bf16", "fp32", "int8")}
    with tempfile.TemporaryDirectory() as temporary:
        parent = options.folder or Path(temporary)
        models = {name: measure(name, make(name, parent), dtypes[name], options) for name in names}
    _add_shares(models)
    rows = [_row(f"{name} {dtype}", figures) for name, found in models.items() for dtype, figures in found.items()]
    print(table(HEAD, rows))
    write("lm", {"models": models}, options)


if __name__ == "__main__":
    main()
