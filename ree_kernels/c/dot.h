/* The chunked order of `dot`, once, as the register tile that every product is made of.
 *
 * total = +0; for each chunk of 256 k, ascending: acc = +0; acc = fma(a_k, b_k, acc) for k
 * ascending; total = total + acc. A tile call does one chunk; totals wait in C between calls
 * (a float32 stored and loaded again keeps its bits).
 */
#ifndef REE_DOT_H
#define REE_DOT_H

#include "vec.h"

#define REE_CHUNK 256

/* What a tile call does with its chunk sums. */
enum {
    TILE_FIRST = 1, /* total starts at +0 here (else it is loaded from C) */
    TILE_CANONICAL = 2 /* NaN becomes canonical as it is stored: the last chunk, no epilogue */
};

/* One chunk of mr x (nv * W) outputs.
 *
 * a: element (row i, k) at a[i * a_row + k]; b: element (k, vector v) at b[k * b_k + v * W], or from the next
 * panel on (v >= REE_NV) b_panel floats further per panel; c: row stride c_row; the first `cols` columns are
 * stored. mr, nv, a_row, b_k and ahead are constants at every call, so that acc lives in registers and addresses
 * are displacements. ahead: floats of B to prefetch before they are read (0: leave it to the processor).
 * next, next_step: memory to prefetch into the second cache, so many bytes per k (a constant NULL: none).
 */
REE_INLINE void dot_tile_next(const char *next, int64_t next_step, const int mr, const int nv, int64_t k_count,
                              const float *restrict a, const int64_t a_row, const float *restrict b,
                              const int64_t b_k, int64_t b_panel, const int64_t ahead, float *restrict c,
                              int64_t c_row, int64_t cols, int flags)
{
    vf acc[REE_MR][REE_NV_MAX];
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++) {
            acc[i][v] = vf_zero();
            __builtin_prefetch(c + i * c_row + v * W, 1);
        }

#pragma GCC unroll 4
    for (int64_t k = 0; k < k_count; k++) {
        vf bv[REE_NV_MAX];
        if (next)
            __builtin_prefetch(next + k * next_step, 0, 2);
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++) {
            const float *from = b + k * b_k + (v / REE_NV) * b_panel + (v % REE_NV) * W;
            bv[v] = vf_load(from);
            if (ahead)
                __builtin_prefetch(from + ahead);
        }
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            const vf av = vf_set(a[i * a_row + k]);
#pragma GCC unroll 16
            for (int v = 0; v < nv; v++)
                acc[i][v] = vf_fma(av, bv[v], acc[i][v]);
        }
    }

    const int whole = cols >= nv * W;
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++) {
            float *const out = c + i * c_row + v * W;
            const int64_t left = whole ? W : cols - v * W < 0 ? 0 : cols - v * W < W ? cols - v * W : W;
            vf total = flags & TILE_FIRST ? vf_zero() : whole ? vf_load(out) : vf_load_part(out, left);
            total = vf_add(total, acc[i][v]);
            if (flags & TILE_CANONICAL)
                total = vf_canonical(total);
            if (whole)
                vf_store(out, total);
            else
                vf_store_part(out, total, left);
        }
}

REE_INLINE void dot_tile(const int mr, const int nv, int64_t k_count, const float *restrict a, const int64_t a_row,
                         const float *restrict b, const int64_t b_k, int64_t b_panel, const int64_t ahead,
                         float *restrict c, int64_t c_row, int64_t cols, int flags)
{
    dot_tile_next(0, 0, mr, nv, k_count, a, a_row, b, b_k, b_panel, ahead, c, c_row, cols, flags);
}

#endif
