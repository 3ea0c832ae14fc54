/* Convolution of one to three spatial axes as an implicit matrix product. */
#ifndef REE_CONV_H
#define REE_CONV_H

#include "abi.h"

/* out[pixel, o] = dot over k of operand * weight, k = tap * (channels / groups) + channel of
 * the group; taps in C order of the kernel. The operand of output coordinate y and tap t
 * along an axis is input y * stride - pad + t * dilation, transposed: (y + pad - t *
 * dilation) / stride where that divides evenly; +0 where it falls outside.
 *
 * Always three spatial axes (extent, kernel, stride 1 for leading ones that there are not).
 * Rows of the index space are n * prod(out_shape) pixels, columns are output channels of all
 * groups. x has strides in floats (x_n, x_c, x_shape's); w is what ree_pack_conv made; out
 * rows lie out_row floats apart. With an epilogue, that function is called on sub-boxes once
 * their outputs are complete and stores the results itself; without, a NaN is canonical.
 * groups divides channels and outputs. */
typedef struct {
    const float *x;
    const float *w;
    float *out;
    int64_t channels, outputs, groups, transposed;
    int64_t x_shape[3], out_shape[3], kernel[3], stride[3], pad[3], dilation[3];
    int64_t x_n, x_c, x_stride[3];
    int64_t out_row;
    ree_kernel epilogue;
    const void *epilogue_args;
} ree_conv_args;

void ree_conv(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* Scratch of ree_conv for any box; reads the extents alone, no pointer and no stride. */
int64_t ree_conv_scratch_bytes(const ree_conv_args *args);

/* Rows that ree_conv takes through all of K at once: boxes of a multiple of it waste nothing. */
int64_t ree_conv_block_rows(void);

/* Floats of packed weights. */
int64_t ree_pack_conv_floats(int64_t channels, int64_t outputs, int64_t groups, int64_t taps);

/* Pack contiguous weights: [outputs, channels / groups, taps], or for a transposed convolution
 * [channels, outputs / groups, taps]; `packed` is 64-byte aligned. 0, or 1 if groups do not divide. */
int ree_pack_conv(float *packed, int64_t channels, int64_t outputs, int64_t groups, int64_t taps, const float *weights,
                  int64_t transposed);

#endif
