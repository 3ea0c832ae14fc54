/* Convolution with as many outputs as inputs in a small group (depthwise: one): a vector of
 * outputs reads one vector of inputs per tap, its lanes exchanged within groups. */
#ifndef REE_CONV_CHANNELS_H
#define REE_CONV_CHANNELS_H

#include "conv_input.h"
#include "dot.h"

typedef int32_t lane_index __attribute__((vector_size(W * 4)));

/* Whether groups are so small and regular that lanes of a vector hold whole groups. */
static inline int conv_by_channels(int64_t channels, int64_t outputs, int64_t groups)
{
    const int64_t size = channels / groups;
    return channels == outputs && size < W && W % size == 0;
}

/* Outputs [o, o + n), n <= NV * W, of one pixel; x[tap] are its operands (zeros for padding). */
REE_INLINE void channels_tile(const int nv, const ree_conv_args *a, const float *const *x, int64_t taps, int64_t size,
                              int64_t o, int64_t n, float *out)
{
    lane_index lane[W];
    for (int64_t c = 0; c < size; c++)
        for (int l = 0; l < W; l++)
            lane[c][l] = (int32_t)(l / size * size + c);
    vf total[4];
    for (int v = 0; v < nv; v++)
        total[v] = vf_zero();
    for (int64_t k0 = 0; k0 < taps * size; k0 += REE_CHUNK) {
        const int64_t k1 = conv_min(taps * size, k0 + REE_CHUNK);
        vf acc[4];
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            acc[v] = vf_zero();
        /* size divides W, hence 256: a chunk holds whole taps */
        for (int64_t t = k0 / size; t < k1 / size; t++) {
            const float *w = a->w + t * size * a->outputs + o;
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) {
                const int64_t left = n - v * W;
                const vf xv = left >= W ? vf_load(x[t] + o + v * W) : vf_load_part(x[t] + o + v * W, left);
                for (int64_t c = 0; c < size; c++) {
                    const float *wc = w + c * a->outputs + v * W;
                    const vf operand = size == 1 ? xv : __builtin_shuffle(xv, lane[c]);
                    acc[v] = vf_fma(operand, left >= W ? vf_load(wc) : vf_load_part(wc, left), acc[v]);
                }
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            total[v] = vf_add(total[v], acc[v]);
    }
    for (int v = 0; v < nv; v++) {
        const int64_t left = n - v * W;
        const vf value = a->epilogue ? total[v] : vf_canonical(total[v]);
        if (left >= W)
            vf_store(out + v * W, value);
        else
            vf_store_part(out + v * W, value, left);
    }
}

/* Outputs [c0, c1) of one pixel. */
static void channels_pixel(const ree_conv_args *a, const float *const *x, int64_t taps, int64_t c0, int64_t c1,
                           float *out)
{
    const int64_t size = a->channels / a->groups;
    int64_t o = c0;
    if (o % size || c1 % size) { /* a box that cuts a group: whole groups aside, then a part of them */
        float whole[2 * W];
        while (o < c1) {
            const int64_t start = o - o % size, stop = conv_min(start + W, a->outputs);
            channels_tile(1, a, x, taps, size, start, stop - start, whole);
            for (; o < conv_min(stop, c1); o++)
                out[o] = whole[o - start];
        }
        return;
    }
    if (size == 1) {
        for (; o + 4 * W <= c1; o += 4 * W)
            channels_tile(4, a, x, taps, 1, o, 4 * W, out + o);
        for (; o < c1; o += W)
            channels_tile(1, a, x, taps, 1, o, conv_min(W, c1 - o), out + o);
        return;
    }
    for (; o + 2 * W <= c1; o += 2 * W)
        channels_tile(2, a, x, taps, size, o, 2 * W, out + o);
    for (; o < c1; o += W)
        channels_tile(1, a, x, taps, size, o, conv_min(W, c1 - o), out + o);
}

/* Floats of scratch: taps and their offsets, operand addresses, zeros, operands of strided channels. */
static inline int64_t channels_scratch_floats(int64_t channels, int64_t taps)
{
    return 10 * taps + (taps + 1) * channels;
}

/* A box: every pixel gets the addresses of its operands once. */
static void channels_box(const ree_conv_args *a, const conv_pixel *pixels, int64_t rows, int64_t c0, int64_t c1,
                         float *out, void *scratch)
{
    const int64_t taps = conv_taps(a);
    int64_t *offsets = scratch, *taps_of = offsets + taps;
    const float **x = (const float **)(taps_of + 3 * taps);
    float *zeros = (float *)(x + taps), *gathered = zeros + a->channels;
    for (int64_t t = 0; t < taps; t++) {
        conv_split_tap(a, t, taps_of + 3 * t);
        offsets[t] = conv_tap_offset(a, taps_of + 3 * t);
    }
    memset(zeros, 0, (size_t)a->channels * sizeof *zeros);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t t = 0; t < taps; t++) {
            x[t] = conv_operands(a, a->x, pixels + r, taps_of + 3 * t, offsets[t]);
            if (!x[t]) {
                x[t] = zeros;
            } else if (a->x_c != 1) {
                conv_copy(gathered + t * a->channels, x[t], a->x_c, a->channels);
                x[t] = gathered + t * a->channels;
            }
        }
        channels_pixel(a, x, taps, c0, c1, out + r * a->out_row);
    }
}

#endif
