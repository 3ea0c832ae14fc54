/* Operands of a convolution: which input element an output pixel and a tap name, and the
 * copy of a block of operand rows for one chunk of k. */
#ifndef REE_CONV_INPUT_H
#define REE_CONV_INPUT_H

#include "conv.h"
#include "vec.h"

/* One output pixel: its image, and its coordinates where taps are counted from. */
typedef struct {
    const float *image;
    int64_t at[3];
} conv_pixel;

REE_INLINE int64_t conv_min(int64_t a, int64_t b) { return a < b ? a : b; }
REE_INLINE int64_t conv_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t conv_taps(const ree_conv_args *a) { return a->kernel[0] * a->kernel[1] * a->kernel[2]; }

/* Pixels [r0, r1) of the output. */
static void conv_pixels(const ree_conv_args *a, int64_t r0, int64_t r1, conv_pixel *pixels)
{
    int64_t y[3], row = r0;
    for (int d = 2; d >= 0; d--) {
        y[d] = row % a->out_shape[d];
        row /= a->out_shape[d];
    }
    for (int64_t r = r0; r < r1; r++) {
        conv_pixel *p = pixels + (r - r0);
        p->image = a->x + row * a->x_n;
        for (int d = 0; d < 3; d++)
            p->at[d] = a->transposed ? y[d] + a->pad[d] : y[d] * a->stride[d] - a->pad[d];
        for (int d = 2; d >= 0 && ++y[d] == a->out_shape[d]; d--) {
            y[d] = 0;
            row += d == 0;
        }
    }
}

/* The input coordinate along axis d, or -1 outside. */
REE_INLINE int64_t conv_coordinate(const ree_conv_args *a, const conv_pixel *p, int d, int64_t tap)
{
    int64_t i = p->at[d];
    if (a->transposed) {
        i -= tap * a->dilation[d];
        if (i < 0 || i % a->stride[d])
            return -1;
        i /= a->stride[d];
    } else {
        i += tap * a->dilation[d];
    }
    return (uint64_t)i < (uint64_t)a->x_shape[d] ? i : -1;
}

/* Channel 0 of the operands of one tap, or NULL where they are padding. */
REE_INLINE const float *conv_operands(const ree_conv_args *a, const conv_pixel *p, const int64_t tap[3])
{
    const float *x = p->image;
    for (int d = 0; d < 3; d++) {
        const int64_t i = conv_coordinate(a, p, d, tap[d]);
        if (i < 0)
            return 0;
        x += i * a->x_stride[d];
    }
    return x;
}

static inline void conv_split_tap(const ree_conv_args *a, int64_t t, int64_t tap[3])
{
    for (int d = 2; d >= 0; d--) {
        tap[d] = t % a->kernel[d];
        t /= a->kernel[d];
    }
}

REE_INLINE void conv_copy(float *to, const float *from, int64_t step, int64_t n)
{
    int64_t i = 0;
    if (step == 1) {
        for (; i + W <= n; i += W)
            vf_store(to + i, vf_load(from + i));
        if (i < n)
            vf_store_part(to + i, vf_load_part(from + i, n - i), n - i);
        return;
    }
    for (; i < n; i++)
        to[i] = from[i * step];
}

REE_INLINE void conv_zero(float *to, int64_t n)
{
    int64_t i = 0;
    for (; i + W <= n; i += W)
        vf_store(to + i, vf_zero());
    if (i < n)
        vf_store_part(to + i, vf_zero(), n - i);
}

/* Whether a line of taps along the last axis reads consecutive memory. */
static inline int conv_has_lines(const ree_conv_args *a)
{
    return !a->transposed && a->groups == 1 && a->x_c == 1 && a->dilation[2] == 1 && a->x_stride[2] == a->channels;
}

/* block[row * block_row + k - k0] = operand k of that pixel, by whole lines of taps: [p0, p1) of line (z, y). */
static void conv_pack_line(const ree_conv_args *a, const conv_pixel *pixels, int64_t rows, const int64_t tap[3],
                           int64_t p0, int64_t p1, float *block, int64_t block_row)
{
    const int64_t c = a->channels, width = a->x_shape[2];
    for (int64_t r = 0; r < rows; r++) {
        const conv_pixel *p = pixels + r;
        float *to = block + r * block_row;
        const int64_t z = conv_coordinate(a, p, 0, tap[0]), y = conv_coordinate(a, p, 1, tap[1]);
        if ((z | y) < 0) {
            conv_zero(to, p1 - p0);
            continue;
        }
        const int64_t first = p->at[2] * c;
        const int64_t lo = conv_min(conv_max(p0, -first), p1), hi = conv_max(conv_min(p1, width * c - first), lo);
        if (lo > p0)
            conv_zero(to, lo - p0);
        const float *line = p->image + z * a->x_stride[0] + y * a->x_stride[1];
        conv_copy(to + (lo - p0), line + first + lo, 1, hi - lo);
        if (p1 > hi)
            conv_zero(to + (hi - p0), p1 - hi);
    }
}

/* The same for channels [p0, p1) of one tap. */
static void conv_pack_tap(const ree_conv_args *a, const conv_pixel *pixels, int64_t rows, const int64_t tap[3],
                          int64_t p0, int64_t p1, float *block, int64_t block_row)
{
    for (int64_t r = 0; r < rows; r++) {
        const float *x = conv_operands(a, pixels + r, tap);
        float *to = block + r * block_row;
        if (x)
            conv_copy(to, x + p0 * a->x_c, a->x_c, p1 - p0);
        else
            conv_zero(to, p1 - p0);
    }
}

/* Operands [k0, k1) of every pixel. */
static void conv_pack_chunk(const ree_conv_args *a, const conv_pixel *pixels, int64_t rows, int64_t k0, int64_t k1,
                            float *block, int64_t block_row)
{
    const int lines = conv_has_lines(a);
    const int64_t length = a->channels / a->groups * (lines ? a->kernel[2] : 1);
    while (k0 < k1) {
        const int64_t number = k0 / length, p0 = k0 % length, p1 = conv_min(length, p0 + k1 - k0);
        int64_t tap[3];
        conv_split_tap(a, lines ? number * a->kernel[2] : number, tap);
        if (lines)
            conv_pack_line(a, pixels, rows, tap, p0, p1, block, block_row);
        else
            conv_pack_tap(a, pixels, rows, tap, p0, p1, block, block_row);
        block += p1 - p0;
        k0 += p1 - p0;
    }
}

#endif
