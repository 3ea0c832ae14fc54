/* The `sum` fold: the one order in which floats are summed.
 *
 * A chunk of 256 is 16 lanes: lane l adds elements l, l+16, ... from +0; lanes are folded
 * 16 -> 8 (i with i+8) -> 4 -> 2 -> 1. Chunk sums are summed again by the same rule until
 * one is left. Elements past the end are left out.
 */
#ifndef REE_SUM_H
#define REE_SUM_H

#include "vec.h"

#define REE_SUM_CHUNK 256
#define REE_SUM_LANES 16

enum { SUM_VECTORS = REE_SUM_LANES / W };

/* The 16 lanes of each of `chunks` whole chunks (a constant: their chains of additions overlap). */
REE_INLINE void sum_lanes(const float *p, const int chunks, float (*lanes)[REE_SUM_LANES])
{
    vf part[4][SUM_VECTORS];
#pragma GCC unroll 4
    for (int c = 0; c < chunks; c++)
#pragma GCC unroll 4
        for (int v = 0; v < SUM_VECTORS; v++)
            part[c][v] = vf_zero();
    for (int64_t i = 0; i < REE_SUM_CHUNK; i += REE_SUM_LANES)
#pragma GCC unroll 4
        for (int c = 0; c < chunks; c++)
#pragma GCC unroll 4
            for (int v = 0; v < SUM_VECTORS; v++)
                part[c][v] = vf_add(part[c][v], vf_load(p + c * REE_SUM_CHUNK + i + v * W));
#pragma GCC unroll 4
    for (int c = 0; c < chunks; c++)
#pragma GCC unroll 4
        for (int v = 0; v < SUM_VECTORS; v++)
            vf_store(lanes[c] + v * W, part[c][v]);
}

REE_INLINE float fold_lanes(float *lanes)
{
    for (int half = REE_SUM_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            lanes[l] = lanes[l] + lanes[l + half];
    return lanes[0];
}

/* Sum of one chunk, n <= 256 contiguous floats. A lane is never -0, so that +0 in place of what is left out leaves
 * it as it is. */
REE_INLINE float sum_chunk(const float *p, int64_t n)
{
    float lanes[1][REE_SUM_LANES];
    if (n == REE_SUM_CHUNK) {
        sum_lanes(p, 1, lanes);
        return fold_lanes(lanes[0]);
    }
    vf part[SUM_VECTORS];
    for (int v = 0; v < SUM_VECTORS; v++)
        part[v] = vf_zero();
    int64_t i = 0;
    for (; i + REE_SUM_LANES <= n; i += REE_SUM_LANES)
        for (int v = 0; v < SUM_VECTORS; v++)
            part[v] = vf_add(part[v], vf_load(p + i + v * W));
    for (int v = 0; v < SUM_VECTORS && i + v * W < n; v++)
        part[v] = vf_add(part[v], vf_load_part(p + i + v * W, n - i - v * W < W ? n - i - v * W : W));
    for (int v = 0; v < SUM_VECTORS; v++)
        vf_store(lanes[0] + v * W, part[v]);
    return fold_lanes(lanes[0]);
}

/* Sums of whole chunks, one after another. */
REE_INLINE void sum_chunks(const float *p, int64_t chunks, float *sums)
{
    float lanes[4][REE_SUM_LANES];
    int64_t c = 0;
    for (; c + 4 <= chunks; c += 4) {
        sum_lanes(p + c * REE_SUM_CHUNK, 4, lanes);
        for (int i = 0; i < 4; i++)
            sums[c + i] = fold_lanes(lanes[i]);
    }
    for (; c < chunks; c++)
        sums[c] = sum_chunk(p + c * REE_SUM_CHUNK, REE_SUM_CHUNK);
}

/* Sum of n contiguous floats. Levels are kept as one open chunk each: level 0 holds chunk sums,
 * level 1 sums of 256 of those, ...; 8 levels reach beyond 2^63 elements. */
static float sum_row(const float *p, int64_t n)
{
    if (n <= REE_SUM_CHUNK)
        return sum_chunk(p, n);
    if (n <= REE_SUM_CHUNK * REE_SUM_CHUNK) {
        float sums[REE_SUM_CHUNK];
        const int64_t whole = n / REE_SUM_CHUNK, rest = n % REE_SUM_CHUNK;
        sum_chunks(p, whole, sums);
        if (rest)
            sums[whole] = sum_chunk(p + whole * REE_SUM_CHUNK, rest);
        return sum_chunk(sums, whole + (rest != 0));
    }
    float open[8][REE_SUM_CHUNK];
    int64_t filled[8] = {0};
    int top = 0;
    for (int64_t i = 0; i < n; i += REE_SUM_CHUNK) {
        float value = sum_chunk(p + i, n - i < REE_SUM_CHUNK ? n - i : REE_SUM_CHUNK);
        int level = 0;
        open[level][filled[level]++] = value;
        while (filled[level] == REE_SUM_CHUNK && i + REE_SUM_CHUNK < n) {
            value = sum_chunk(open[level], REE_SUM_CHUNK);
            filled[level++] = 0;
            open[level][filled[level]++] = value;
            top = level > top ? level : top;
        }
    }
    for (int level = 0;; level++) {
        if (level >= top && filled[level] == 1)
            return open[level][0];
        if (filled[level] == 0)
            continue;
        const float value = sum_chunk(open[level], filled[level]);
        filled[level] = 0;
        open[level + 1][filled[level + 1]++] = value;
        top = level + 1 > top ? level + 1 : top;
    }
}

#endif
