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

/* Sum of one chunk, n <= 256 contiguous floats. */
REE_INLINE float sum_chunk(const float *p, int64_t n)
{
    float lanes[REE_SUM_LANES];
    vf part[REE_SUM_LANES / W];
    for (int v = 0; v < REE_SUM_LANES / W; v++)
        part[v] = vf_zero();
    int64_t i = 0;
    for (; i + REE_SUM_LANES <= n; i += REE_SUM_LANES)
        for (int v = 0; v < REE_SUM_LANES / W; v++)
            part[v] = vf_add(part[v], vf_load(p + i + v * W));
    for (int v = 0; v < REE_SUM_LANES / W; v++)
        vf_store(lanes + v * W, part[v]);
    for (int l = 0; i < n; i++, l++)
        lanes[l] = lanes[l] + p[i];
    for (int half = REE_SUM_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            lanes[l] = lanes[l] + lanes[l + half];
    return lanes[0];
}

/* Sum of n contiguous floats. Levels are kept as one open chunk each: level 0 holds chunk sums,
 * level 1 sums of 256 of those, ...; 8 levels reach beyond 2^63 elements. */
static float sum_row(const float *p, int64_t n)
{
    if (n <= REE_SUM_CHUNK)
        return sum_chunk(p, n);
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
