"""The extents of a convolution of a graph, as kernels take them."""

from __future__ import annotations

from typing import Any

from ree.plan.planning import Planning
from ree_kernels.conv import Conv


def sizes_of(p: Planning[Any], value: int) -> Conv:
    """Of a `conv` or `conv_transpose`."""
    node = p.node(value)
    x, w = (p.layouts[source].shape for source in node.inputs)
    return Conv(
        batch=x[0],
        channels=x[1],
        outputs=p.layouts[value].shape[1],
        groups=node.attrs["groups"],
        x_shape=x[2:],
        kernel=w[2:],
        stride=node.attrs["stride"],
        padding=node.attrs["padding"],
        dilation=node.attrs["dilation"],
        transposed=node.op == "conv_transpose",
        output_padding=node.attrs.get("output_padding", ()),
    )
