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

enum {
    TILE_A_ROW = REE_CHUNK + 16, /* floats from row to row of A: far apart, rows would share few cache sets */
    LINE_BYTES = 64
};

/* One chunk: k_count <= 256 of A's rows, of B from its row k on, into columns of C. */
typedef struct {
    const float *a;
    const float *b;         /* a panel of packed B, */
    const uint16_t *b_bf16; /* or one of bfloat16: each two vectors in the order of vf_load_bf16 */
    int64_t b_panel;        /* elements from panel to panel, for tiles of several */
    float *c;
    int64_t c_row;
    int64_t k_count;
    int flags; /* TILE_FIRST, TILE_CANONICAL */
} tile_args;

/* What is known of a tile when it is compiled, so that acc lives in registers and addresses are displacements. */
typedef struct {
    int mr, nv; /* rows of A, vectors of B */
    int bf16;   /* read b_bf16 */
    int ahead;  /* bytes of B to prefetch before they are read; 0: leave it to the processor */
} tile_shape;

/* B's vectors at k. */
REE_INLINE void tile_load_b(vf *bv, const tile_args *t, const tile_shape shape, int64_t k)
{
#pragma GCC unroll 16
    for (int v = 0; v < shape.nv; v += shape.bf16 ? 2 : 1) {
        const int64_t at = k * REE_NR + v / REE_NV * t->b_panel + v % REE_NV * W;
        const char *const from = shape.bf16 ? (const char *)(t->b_bf16 + at) : (const char *)(t->b + at);
        const int bytes = v % REE_NV * W * (shape.bf16 ? 2 : 4); /* within the panel's row: a line is fetched once */
        if (shape.bf16)
            vf_load_bf16(bv + v, t->b_bf16 + at);
        else
            bv[v] = vf_load(t->b + at);
        if (shape.ahead && bytes % LINE_BYTES == 0)
            __builtin_prefetch(from + shape.ahead);
    }
}

/* mr x (nv * W) outputs, of which the first `cols` columns are stored.
 * next, next_step: memory to prefetch into the second cache, so many bytes per k (a constant NULL: none). */
REE_INLINE void dot_tile(const tile_args *args, int64_t cols, const tile_shape shape, const char *next,
                         int64_t next_step)
{
    const tile_args t = *args;
    const float *restrict const a = t.a;
    float *restrict const c = t.c;
    vf acc[REE_MR][REE_NV_MAX];
#pragma GCC unroll 16
    for (int i = 0; i < shape.mr; i++)
#pragma GCC unroll 16
        for (int v = 0; v < shape.nv; v++) {
            acc[i][v] = vf_zero();
            __builtin_prefetch(c + i * t.c_row + v * W, 1);
        }

#pragma GCC unroll 4
    for (int64_t k = 0; k < t.k_count; k++) {
        vf bv[REE_NV_MAX];
        if (next)
            __builtin_prefetch(next + k * next_step, 0, 2);
        tile_load_b(bv, &t, shape, k);
#pragma GCC unroll 16
        for (int i = 0; i < shape.mr; i++) {
            const vf av = vf_set(a[i * TILE_A_ROW + k]);
#pragma GCC unroll 16
            for (int v = 0; v < shape.nv; v++)
                acc[i][v] = vf_fma(av, bv[v], acc[i][v]);
        }
    }

    const int whole = cols >= shape.nv * W;
#pragma GCC unroll 16
    for (int i = 0; i < shape.mr; i++)
#pragma GCC unroll 16
        for (int v = 0; v < shape.nv; v++) {
            float *const out = c + i * t.c_row + v * W;
            const int64_t left = whole ? W : cols - v * W < 0 ? 0 : cols - v * W < W ? cols - v * W : W;
            vf total = t.flags & TILE_FIRST ? vf_zero() : whole ? vf_load(out) : vf_load_part(out, left);
            total = vf_add(total, acc[i][v]);
            if (t.flags & TILE_CANONICAL)
                total = vf_canonical(total);
            if (whole)
                vf_store(out, total);
            else
                vf_store_part(out, total, left);
        }
}

#endif
