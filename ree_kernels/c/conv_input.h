/* Operands of a convolution: which input element an output pixel and a tap name, and the
 * copy of a block of operand rows for one chunk of k. */
#ifndef REE_CONV_INPUT_H
#define REE_CONV_INPUT_H

#include "conv.h"
#include "vec.h"

/* One output pixel. at: its coordinates in the input, from which taps are counted; offset: the floats from x
 * to there (perhaps outside; of the image alone if transposed); inside: no tap of it is padding. */
typedef struct {
    int64_t offset;
    int64_t at[3];
    int64_t inside;
} conv_pixel;

/* What conv_pack_chunk copies from: pixels, x at the first channel of a group, and scratch for a part of
 * one input line. */
typedef struct {
    const ree_conv_args *a;
    const conv_pixel *pixels;
    int64_t rows;
    const float *x;
    float *stage;
} conv_source;

REE_INLINE int64_t conv_min(int64_t a, int64_t b) { return a < b ? a : b; }
REE_INLINE int64_t conv_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t conv_taps(const ree_conv_args *a) { return a->kernel[0] * a->kernel[1] * a->kernel[2]; }

static inline int conv_axis_inside(const ree_conv_args *a, int d, int64_t at)
{
    return at >= 0 && at + (a->kernel[d] - 1) * a->dilation[d] < a->x_shape[d];
}

/* The pixel with coordinates y of image n. */
static conv_pixel conv_pixel_at(const ree_conv_args *a, int64_t n, const int64_t y[3])
{
    conv_pixel p = {.offset = n * a->x_n, .inside = !a->transposed};
    for (int d = 0; d < 3; d++) {
        p.at[d] = a->transposed ? y[d] + a->pad[d] : y[d] * a->stride[d] - a->pad[d];
        if (!a->transposed) {
            p.offset += p.at[d] * a->x_stride[d];
            p.inside &= conv_axis_inside(a, d, p.at[d]);
        }
    }
    return p;
}

/* Pixels [r0, r1) of the output, line by line. */
static void conv_pixels(const ree_conv_args *a, int64_t r0, int64_t r1, conv_pixel *pixels)
{
    const int64_t width = a->out_shape[2], step = a->transposed ? 1 : a->stride[2];
    const int64_t advance = a->transposed ? 0 : a->stride[2] * a->x_stride[2];
    for (int64_t r = r0; r < r1;) {
        const int64_t line = r / width, plane = line / a->out_shape[1];
        const int64_t first[3] = {plane % a->out_shape[0], line % a->out_shape[1], 0};
        conv_pixel p = conv_pixel_at(a, plane / a->out_shape[0], first);
        const int line_inside = !a->transposed && conv_axis_inside(a, 0, p.at[0]) && conv_axis_inside(a, 1, p.at[1]);
        const int64_t skip = r - line * width, end = conv_min(r1, (line + 1) * width);
        p.at[2] += skip * step;
        p.offset += skip * advance;
        for (; r < end; r++) {
            p.inside = line_inside && conv_axis_inside(a, 2, p.at[2]);
            *pixels++ = p;
            p.at[2] += step;
            p.offset += advance;
        }
    }
}

static inline void conv_split_tap(const ree_conv_args *a, int64_t t, int64_t tap[3])
{
    for (int d = 2; d >= 0; d--) {
        tap[d] = t % a->kernel[d];
        t /= a->kernel[d];
    }
}

/* Floats from a pixel's place to that of a tap (not transposed). */
static inline int64_t conv_tap_offset(const ree_conv_args *a, const int64_t tap[3])
{
    int64_t offset = 0;
    for (int d = 0; d < 3; d++)
        offset += tap[d] * a->dilation[d] * a->x_stride[d];
    return offset;
}

REE_INLINE int conv_in_range(const ree_conv_args *a, const conv_pixel *p, int d, int64_t tap)
{
    return (uint64_t)(p->at[d] + tap * a->dilation[d]) < (uint64_t)a->x_shape[d];
}

/* Offset of the operands of one tap of a transposed convolution, or -1 where they are padding. */
static int64_t conv_transposed_offset(const ree_conv_args *a, const conv_pixel *p, const int64_t tap[3])
{
    int64_t offset = p->offset;
    for (int d = 0; d < 3; d++) {
        const int64_t reach = p->at[d] - tap[d] * a->dilation[d];
        if (reach < 0 || reach % a->stride[d] || reach / a->stride[d] >= a->x_shape[d])
            return -1;
        offset += reach / a->stride[d] * a->x_stride[d];
    }
    return offset;
}

/* Operands of one tap, from channel 0 on, or NULL where they are padding; tap_offset: conv_tap_offset. */
REE_INLINE const float *conv_operands(const ree_conv_args *a, const float *x, const conv_pixel *p,
                                      const int64_t tap[3], int64_t tap_offset)
{
    if (p->inside)
        return x + (p->offset + tap_offset);
    if (a->transposed) {
        const int64_t offset = conv_transposed_offset(a, p, tap);
        return offset < 0 ? 0 : x + offset;
    }
    if (conv_in_range(a, p, 0, tap[0]) && conv_in_range(a, p, 1, tap[1]) && conv_in_range(a, p, 2, tap[2]))
        return x + (p->offset + tap_offset);
    return 0;
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

/* -- lines: all taps along the last axis at once ----------------------------------------------- */

/* With fewer channels a line of taps is short, and work per tap would cost more than the copy. */
enum { STAGED_CHANNELS = 16 };

/* Whether a line of taps is one run of memory. */
static inline int conv_is_run(const ree_conv_args *a)
{
    return (a->x_c == 1 || a->channels == 1) && a->x_stride[2] == a->channels;
}

static inline int conv_has_lines(const ree_conv_args *a)
{
    const int dense = a->dilation[2] == 1 || a->kernel[2] == 1;
    return !a->transposed && a->groups == 1 && dense && (conv_is_run(a) || a->channels < STAGED_CHANNELS);
}

/* Floats that conv_stage writes for so many pixels of one output line. */
static inline int64_t conv_stage_floats(const ree_conv_args *a, int64_t pixels)
{
    return a->channels < STAGED_CHANNELS ? ((pixels - 1) * a->stride[2] + a->kernel[2]) * a->channels : 0;
}

/* Part of an input line with its channels side by side and zeros around it, so that it is a run:
 * `places` of them from coordinate `first` on; from: coordinate 0, channel 0. */
static void conv_stage(const ree_conv_args *a, const float *from, int64_t first, int64_t places, float *stage)
{
    const int64_t c = a->channels;
    const int64_t lo = conv_min(conv_max(-first, 0), places);
    const int64_t hi = conv_max(conv_min(a->x_shape[2] - first, places), lo);
    conv_zero(stage, lo * c);
    for (int64_t i = 0; i < c; i++) {
        const float *channel = from + i * a->x_c;
        for (int64_t p = lo; p < hi; p++)
            stage[p * c + i] = channel[(first + p) * a->x_stride[2]];
    }
    conv_zero(stage + hi * c, (places - hi) * c);
}

/* Positions (tap along the last axis * channels + channel) [p0, p1) of the line of taps (tap[0], tap[1]) for pixels
 * of one output line, by way of a staged input line. */
static void conv_pack_staged(const conv_source *s, const conv_pixel *pixels, int64_t count, const int64_t tap[3],
                             int64_t p0, int64_t p1, float *block, int64_t block_row)
{
    const ree_conv_args *a = s->a;
    const int64_t first = pixels->at[2], places = pixels[count - 1].at[2] - first + a->kernel[2];
    const int exists = conv_in_range(a, pixels, 0, tap[0]) && conv_in_range(a, pixels, 1, tap[1]);
    if (exists)
        conv_stage(a, s->x + (pixels->offset - first * a->x_stride[2] + conv_tap_offset(a, tap)), first, places,
                   s->stage);
    for (int64_t r = 0; r < count; r++) {
        if (exists)
            conv_copy(block + r * block_row, s->stage + (pixels[r].at[2] - first) * a->channels + p0, 1, p1 - p0);
        else
            conv_zero(block + r * block_row, p1 - p0);
    }
}

/* The same straight from x, where a line is a run. */
static void conv_pack_run(const conv_source *s, const int64_t tap[3], int64_t p0, int64_t p1, float *block,
                          int64_t block_row)
{
    const ree_conv_args *a = s->a;
    const int64_t c = a->channels, width = a->x_shape[2];
    const float *x = s->x + conv_tap_offset(a, tap);
    for (int64_t r = 0; r < s->rows; r++) {
        const conv_pixel *p = s->pixels + r;
        float *to = block + r * block_row;
        if (p->inside) {
            conv_copy(to, x + p->offset + p0, 1, p1 - p0);
        } else if (conv_in_range(a, p, 0, tap[0]) && conv_in_range(a, p, 1, tap[1])) {
            const int64_t lo = conv_min(conv_max(p0, -p->at[2] * c), p1);
            const int64_t hi = conv_max(conv_min(p1, (width - p->at[2]) * c), lo);
            conv_zero(to, lo - p0);
            conv_copy(to + (lo - p0), x + p->offset + lo, 1, hi - lo);
            conv_zero(to + (hi - p0), p1 - hi);
        } else {
            conv_zero(to, p1 - p0);
        }
    }
}

static void conv_pack_line(const conv_source *s, const int64_t tap[3], int64_t p0, int64_t p1, float *block,
                           int64_t block_row)
{
    if (conv_is_run(s->a)) {
        conv_pack_run(s, tap, p0, p1, block, block_row);
        return;
    }
    for (int64_t r = 0; r < s->rows;) { /* output lines: the last coordinate grows within one */
        int64_t end = r + 1;
        while (end < s->rows && s->pixels[end].at[2] > s->pixels[end - 1].at[2])
            end++;
        conv_pack_staged(s, s->pixels + r, end - r, tap, p0, p1, block + r * block_row, block_row);
        r = end;
    }
}

/* -- single taps --------------------------------------------------------------------------------- */

/* Channels [p0, p1) of one tap. */
static void conv_pack_tap(const conv_source *s, const int64_t tap[3], int64_t p0, int64_t p1, float *block,
                          int64_t block_row)
{
    const int64_t offset = conv_tap_offset(s->a, tap), step = s->a->x_c;
    for (int64_t r = 0; r < s->rows; r++) {
        const float *from = conv_operands(s->a, s->x, s->pixels + r, tap, offset);
        float *to = block + r * block_row;
        if (from)
            conv_copy(to, from + p0 * step, step, p1 - p0);
        else
            conv_zero(to, p1 - p0);
    }
}

/* Operands [k0, k1) of every pixel, rows of the block block_row floats apart. */
static void conv_pack_chunk(const conv_source *s, int64_t k0, int64_t k1, float *block, int64_t block_row)
{
    const ree_conv_args *a = s->a;
    const int lines = conv_has_lines(a);
    const int64_t length = a->channels / a->groups * (lines ? a->kernel[2] : 1);
    while (k0 < k1) {
        const int64_t number = k0 / length, p0 = k0 % length, p1 = conv_min(length, p0 + k1 - k0);
        int64_t tap[3];
        conv_split_tap(a, lines ? number * a->kernel[2] : number, tap);
        if (lines)
            conv_pack_line(s, tap, p0, p1, block, block_row);
        else
            conv_pack_tap(s, tap, p0, p1, block, block_row);
        block += p1 - p0;
        k0 += p1 - p0;
    }
}

#endif
