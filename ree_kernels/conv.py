"""Fills the arguments of the convolution kernel and decides how its boxes are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ree_kernels import KernelError
from ree_kernels.cpu import Kernels
from ree_kernels.pack import uninitialised

_BOXES_MIN = 8  # enough boxes for several threads to end together
_COLS_MIN = 128  # fewer columns would not pay for gathering the operands again


@dataclass(frozen=True, slots=True)
class Conv:
    """Extents of one convolution; the spatial tuples have one entry per axis (1 to 3 axes)."""

    batch: int
    channels: int
    outputs: int
    groups: int
    x_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Spatial extents of the output."""
        axes = zip(self.x_shape, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        if not self.transposed:
            return tuple((n + 2 * pad - d * (k - 1) - 1) // s + 1 for n, k, s, pad, d in axes)
        extra = self.output_padding or (0,) * len(self.x_shape)
        return tuple(
            (n - 1) * s - 2 * pad + d * (k - 1) + 1 + e for (n, k, s, pad, d), e in zip(axes, extra, strict=True)
        )

    @property
    def rows(self) -> int:
        """Output pixels: rows of the index space."""
        return self.batch * prod(self.out_shape)

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def depth(self) -> int:
        """Length of every dot."""
        return self.taps * (self.channels // self.groups)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a kernel's index space is cut, and the scratch of one thread."""

    rows: int
    cols: int
    row_grain: int
    col_grain: int
    scratch_bytes: int


def pack_weights(kernels: Kernels, conv: Conv, weights: np.ndarray) -> np.ndarray:
    """The weights in the layout of the kernel, float32, 64-byte aligned.

    weights: [outputs, channels / groups, *kernel], or [channels, outputs / groups, *kernel] if transposed.
    KernelError if the shape does not fit.
    """
    ins, outs = conv.channels // conv.groups, conv.outputs // conv.groups
    expected = (conv.channels, outs, *conv.kernel) if conv.transposed else (conv.outputs, ins, *conv.kernel)
    if weights.shape != expected:
        raise KernelError(f"convolution weights are {weights.shape}, not {expected}")
    plain = np.ascontiguousarray(weights, np.float32)
    sizes = (conv.channels, conv.outputs, conv.groups, conv.taps)
    packed = uninitialised(int(kernels.lib.ree_pack_conv_floats(*sizes)))
    pointers = [kernels.ffi.cast("float *", a.ctypes.data) for a in (packed, plain)]
    if kernels.lib.ree_pack_conv(pointers[0], *sizes, pointers[1], conv.transposed):
        raise KernelError(f"{conv.groups} groups do not divide {conv.channels} channels and {conv.outputs} outputs")
    return packed


def fill(args: Any, conv: Conv, x_strides: Sequence[int], out_row: int) -> None:
    """Write all of a `ree_conv_args` but its pointers (x, w, out, epilogue).

    x_strides: those of x as [batch, channels, *spatial], in elements; out_row: elements between output pixels.
    """
    args.channels, args.outputs, args.groups = conv.channels, conv.outputs, conv.groups
    args.transposed = conv.transposed
    axes = len(conv.x_shape)
    for name, values, missing in (
        ("x_shape", conv.x_shape, 1),
        ("out_shape", conv.out_shape, 1),
        ("kernel", conv.kernel, 1),
        ("stride", conv.stride, 1),
        ("pad", conv.padding, 0),
        ("dilation", conv.dilation, 1),
        ("x_stride", x_strides[2:], 0),
    ):
        field = getattr(args, name)
        for position, value in enumerate([missing] * (3 - axes) + list(values)):
            field[position] = value
    args.x_n, args.x_c, args.out_row = x_strides[0], x_strides[1], out_row


def schedule(kernels: Kernels, conv: Conv) -> Schedule:
    """Boxes for a few threads: split by rows, and by columns too where rows are few."""
    lib, tile = kernels.lib, kernels.tile_rows
    args = kernels.ffi.new("ree_conv_args *")
    fill(args, conv, (0,) * (2 + len(conv.x_shape)), 0)
    scratch_bytes = int(lib.ree_conv_scratch_bytes(args))
    rows, cols = conv.rows, conv.outputs
    block = int(lib.ree_conv_block_rows())
    boxes = -(-rows // block)
    if boxes < _BOXES_MIN:
        block = max(4 * tile, -(-rows // (_BOXES_MIN * tile)) * tile)
        boxes = -(-rows // block)
    col_grain = max(1, cols)
    if boxes < _BOXES_MIN and conv.groups == 1:
        parts = min(-(-_BOXES_MIN // max(1, boxes)), max(1, cols // _COLS_MIN))
        unit = kernels.panel_cols
        col_grain = -(-cols // (parts * unit)) * unit
    return Schedule(rows, cols, block, col_grain, scratch_bytes)
