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

/* One chunk of MR x (NV * W) outputs.
 *
 * a: element (row i, k) at a[i * a_row + k]; b: element (k, vector v) at b[k * b_k + v * W],
 * or for v >= REE_NV in the next panel, b_panel floats further; c: row stride c_row; `cols` <= NV * W
 * columns are stored. MR and NV are constants at every call, so that acc lives in registers.
 */
REE_INLINE void dot_tile(const int mr, const int nv, int64_t k_count, const float *restrict a, int64_t a_row,
                         const float *restrict b, int64_t b_k, int64_t b_panel, float *restrict c, int64_t c_row,
                         int64_t cols, int flags)
{
    vf acc[REE_MR][8];
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            acc[i][v] = vf_zero();

#pragma GCC unroll 4
    for (int64_t k = 0; k < k_count; k++) {
        vf bv[8];
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            bv[v] = vf_load(b + k * b_k + (v / REE_NV) * b_panel + (v % REE_NV) * W);
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            const vf av = vf_set(a[i * a_row + k]);
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++)
                acc[i][v] = vf_fma(av, bv[v], acc[i][v]);
        }
    }

#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++) {
            float *out = c + i * c_row + v * W;
            const int64_t left = cols - v * W;
            if (left <= 0)
                continue;
            vf total = flags & TILE_FIRST ? vf_zero() : left >= W ? vf_load(out) : vf_load_part(out, left);
            total = vf_add(total, acc[i][v]);
            if (flags & TILE_CANONICAL)
                total = vf_canonical(total);
            if (left >= W)
                vf_store(out, total);
            else
                vf_store_part(out, total, left);
        }
    }
}

#endif
