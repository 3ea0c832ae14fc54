"""Why torch's operators change their bits: one sentence for each family of operators and kind of change."""

from __future__ import annotations

from collections.abc import Iterable

_FAMILIES: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "product",
        frozenset(
            {"mm", "addmm", "bmm", "baddbmm", "linear", "mv", "addmv", "dot", "matmul", "mkldnn_linear"}
            | {"convolution", "mkldnn_convolution", "_convolution", "conv2d", "slow_conv3d_forward"}
        ),
    ),
    (
        "attention",
        frozenset({"_scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention"}),
    ),
    (
        "reduction",
        frozenset(
            {"sum", "mean", "var", "var_mean", "std", "prod", "linalg_vector_norm", "norm", "logsumexp"}
            | {"native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"}
            | {"_softmax", "_log_softmax", "avg_pool2d", "_adaptive_avg_pool2d", "cumsum"}
        ),
    ),
    (
        "function",
        frozenset(
            {"exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan"}
            | {"sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "sigmoid", "rsqrt", "pow", "atan2"}
            | {"gelu", "silu", "softplus", "mish", "elu", "hardswish"}
        ),
    ),
)

_CAUSES = {
    ("product", "threads"): "threads split the sum over K, or get other blocks, so the sums run in another order",
    ("product", "batch"): "another number of rows picks another kernel, which adds the products in another order",
    ("product", "instruction set"): "each instruction set has a kernel of its own: other blocks and orders, FMA or not",
    ("attention", "threads"): "the blocks of keys that the running softmax combines depend on the threads",
    ("attention", "batch"): "the blocks of keys that the running softmax combines depend on the shape",
    ("attention", "instruction set"): "vector width sets the order of the sums and which code computes exp",
    ("reduction", "threads"): "each thread sums a part, and the parts are added in another order",
    ("reduction", "batch"): "another shape is reduced along another path, with other partial sums",
    ("reduction", "instruction set"): "vector width sets how many partial sums there are and how they are added",
    ("function", "threads"): "where a thread's share ends, elements go through scalar code, which rounds differently",
    ("function", "batch"): "elements at the end of the tensor go through scalar code, which rounds differently",
    ("function", "instruction set"): "each instruction set (and libm) approximates the function with code of its own",
}
_REPEAT = "the same call gives different bits from run to run: its threads race, or it reads uninitialised memory"
_OTHER = "the kernel of this setting computes in another order"


def cause(name: str, kinds: Iterable[str]) -> str:
    """The sentences for an operator ("addmm") that changed in these ways, in order."""
    family = next((f for f, names in _FAMILIES if name in names), "")
    texts = [_REPEAT if kind == "repeat" else _CAUSES.get((family, kind), _OTHER) for kind in dict.fromkeys(kinds)]
    return "; ".join(dict.fromkeys(texts))
