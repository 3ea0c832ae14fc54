"""Views, joins, indexing and scatter against torch, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ree.capture import capture, to_numpy
from ree.errors import RunError, ShapeError, UnsupportedError
from ree.graph import bind
from ree.ops.spec import operator
from ree.reference import evaluate
from ree.types import DType, TensorType
from tests.aten_case import check_close, check_exact, run, samples

F = torch.nn.functional
VIEWS = """
view reshape expand permute transpose t squeeze squeeze/multiple unsqueeze flatten unflatten select slice diagonal
unfold movedim unbind split split/list_args split_with_sizes chunk flip roll rot90 repeat tile as_strided
nn.functional.pixel_shuffle nn.functional.pixel_unshuffle nn.functional.channel_shuffle hsplit
""".split()
JOINS = """
cat stack hstack dstack column_stack block_diag nn.functional.pad/constant nn.functional.pad/reflect
nn.functional.pad/replicate constant_pad_nd select_scatter diagonal_scatter diag_embed diag tril_indices
triu_indices meshgrid/list_of_tensors
""".split()
INDEX = "gather index_select take take_along_dim bucketize searchsorted".split()
SCATTER = """
index_fill index_copy scatter scatter_reduce/amin scatter_reduce/amax masked_scatter
""".split()
SUMS = (
    "scatter_add scatter_reduce/sum scatter_reduce/prod scatter_reduce/mean index_reduce/prod index_reduce/mean".split()
)


@pytest.mark.parametrize("name", VIEWS + JOINS + INDEX + SCATTER + SUMS)
def test_samples_of_torch(name: str) -> None:
    from torch.testing._internal.common_methods_invocations import op_db

    base, _, variant = name.partition("/")
    (info,) = [o for o in op_db if o.name == base and o.variant_test_name == variant]
    tried = 0
    for dtype in (torch.float32, torch.int64, torch.bool):
        if dtype in info.dtypes:
            found = [s for s in samples(name, dtype) if not (base == "index_reduce" and s[1][0].dim() == 0)]
            for call, tensors in found[:: max(1, len(found) // 3)]:
                (check_close if name in SUMS else check_exact)(call, *tensors)
                tried += 1
    assert tried > 0


X = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
IN, DEEP = torch.tensor([0, -1, 2]), torch.tensor([[1], [-1]])
INDEXING = {
    "one": lambda x, i, j: x[i],
    "middle": lambda x, i, j: x[:, j],
    "last two": lambda x, i, j: x[:, i, i],
    "adjacent, broadcast": lambda x, i, j: x[i, j],
    "apart": lambda x, i, j: x[j, :, i],
    "scalar and tensor": lambda x, i, j: x[1, :, i],
    "none": lambda x, i, j: x[:, None, i],
    "put": lambda x, i, j: x.index_put((i, j), torch.arange(5.0)),
    "put apart": lambda x, i, j: torch.ops.aten.index_put(x, [j, None, i], torch.arange(24.0).reshape(2, 3, 4)),
    "put twice": lambda x, i, j: x.index_put((torch.cat([i, i]),), torch.arange(5.0)),
    "accumulate": lambda x, i, j: x.index_put((torch.cat([i, i]),), torch.arange(5.0), accumulate=True),
    "put under a mask": lambda x, i, j: x.index_put((x > 30,), torch.tensor(-1.0)),
    "add": lambda x, i, j: x.index_add(1, torch.tensor([0, 1, 0]), x[:, 1:], alpha=2),
    "slices": lambda x, i, j: (x[1:, -3:-1, ::2], x[:, 5:], x[-1], x[..., 0]),
    "slice_scatter": lambda x, i, j: torch.slice_scatter(x, -x[:, 0:2], 1, 1, 4, 2),
    "narrow": lambda x, i, j: x.narrow(1, -3, 2),
    "tensor_split": lambda x, i, j: (*x.tensor_split(3, 2), *x.tensor_split((1, 3), 1)),
    "repeat_interleave": lambda x, i, j: (x.repeat_interleave(2, 1), x.repeat_interleave(3)),
}


@pytest.mark.parametrize("name", INDEXING)
def test_indexing(name: str) -> None:
    check_exact(INDEXING[name], X, IN, DEEP)


def test_scatter_takes_the_last_of_equal_indices() -> None:
    index = torch.tensor([[0, 0, 1, 0]])
    (result,) = run(lambda x, i, s: x.scatter(1, i, s), torch.zeros(1, 3), index, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    np.testing.assert_array_equal(result, [[4.0, 3.0, 0.0]])


def test_scatter_add_goes_in_source_order() -> None:
    """1e8 + 1 - 1e8 is 0 in this order and 1 in others."""
    source = torch.tensor([[1e8, 1.0, -1e8, 1.0]])
    index = torch.tensor([[0, 0, 0, 1]])
    (result,) = run(lambda x, i, s: x.scatter_add(1, i, s), torch.zeros(1, 2), index, source)
    np.testing.assert_array_equal(result, [[0.0, 1.0]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_accumulate_in_f32(dtype: torch.dtype) -> None:
    source = torch.full((1, 300), 1.0, dtype=dtype)
    index = torch.zeros(1, 300, dtype=torch.int64)
    (result,) = run(lambda x, i, s: x.scatter_add(1, i, s), torch.full((1, 1), 4096.0, dtype=dtype), index, source)
    expected = torch.full((1, 1), 4396.0).to(dtype)
    np.testing.assert_array_equal(result, to_numpy(expected))


def test_embedding_and_its_gradient() -> None:
    weight, index = torch.arange(12.0).reshape(4, 3), torch.tensor([[1, 3, 1], [0, 1, 3]])
    check_exact(lambda w, i: F.embedding(i, w), weight, index)
    grad = torch.arange(18.0).reshape(2, 3, 3)
    for padding in (-1, 1):
        check_exact(lambda g, i, p=padding: torch.ops.aten.embedding_dense_backward(g, i, 4, p, False), grad, index)


@pytest.mark.parametrize(
    "function",
    [lambda x, i: x[i], lambda x, i: F.embedding(i, x), lambda x, i: x.index_put((i,), x[0]),
     lambda x, i: x.index_select(0, i)],
)  # fmt: skip
@pytest.mark.parametrize("bad", [3, -4, 2**62])
def test_out_of_range_fails_the_run(function: object, bad: int) -> None:
    traced = torch.tensor([0, 1])

    class Model(nn.Module):
        def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
            return function(x, i)  # type: ignore[operator]

    x = torch.ones(3, 2)
    graph = capture(Model(), (x, traced)).graph
    evaluate(graph, [to_numpy(x), to_numpy(traced)])
    with pytest.raises(RunError):
        evaluate(graph, [to_numpy(x), np.array([0, bad])])


def test_masks_and_views_of_views_are_refused_with_advice() -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.where"):
        run(lambda x, m: x[m], torch.ones(3), torch.tensor([True, False, True]))
    with pytest.raises(UnsupportedError, match="contiguous"):
        run(lambda x: x.t().as_strided((2, 2), (1, 2)), torch.ones(3, 2))


def test_dynamic_slices() -> None:
    """A captured graph with a symbolic extent gives, once bound, what torch gives for that extent."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x[:, 1:-1], x[:, -2:], torch.cat([x, x.flip(1)], 1), x.roll(1, 1), F.pad(x, (2, 1))

    model = Model()
    graph = capture(model, (torch.ones(2, 6),), dynamic_shapes=({1: torch.export.Dim("n", min=4, max=50)},)).graph
    (symbol,) = graph.symbols
    for n in (4, 5, 9):
        x = torch.arange(2.0 * n).reshape(2, n)
        for ours, torchs in zip(evaluate(bind(graph, {symbol: n}), [to_numpy(x)]), model(x), strict=True):
            np.testing.assert_array_equal(ours, torchs.numpy())


def test_circular_padding() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.pad(x, (2, 1, 1, 0), mode="circular")

    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    (result,) = evaluate(capture(Model(), (x,)).graph, [to_numpy(x)])
    np.testing.assert_array_equal(result, Model()(x).numpy())


def test_wrong_shapes_are_refused() -> None:
    x, i = TensorType((2, 3), DType.F32), TensorType((4, 3), DType.I64)
    with pytest.raises(ShapeError):
        operator("gather").infer([x, i], {"axis": 1})
    with pytest.raises(ShapeError):
        operator("scatter").infer([x, i, x], {"axis": 1, "reduce": "set"})
    with pytest.raises(ShapeError):
        operator("slice").infer([x], {"axis": 1, "start": 2, "step": 1, "length": 2})
    with pytest.raises(ShapeError):
        operator("as_strided").infer([TensorType((6,), DType.F32)], {"shape": (2, 3), "strides": (3, 1), "offset": 1})
