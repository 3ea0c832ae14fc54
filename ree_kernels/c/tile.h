/* The register tiles as functions, one per number of rows. */
#ifndef REE_TILE_H
#define REE_TILE_H

#include "dot.h"

typedef struct {
    const float *a;
    int64_t a_row;
    const float *b;
    int64_t b_k, b_panel;
    float *c;
    int64_t c_row;
    int64_t k_count;
    int flags;
} tile_args;

typedef void (*tile_function)(const tile_args *, int64_t cols);

#define TILE(mr)                                                                                                    \
    static __attribute__((noinline)) void tile_##mr(const tile_args *t, int64_t cols)                               \
    {                                                                                                               \
        dot_tile(mr, REE_NV, t->k_count, t->a, t->a_row, t->b, t->b_k, t->b_panel, t->c, t->c_row, cols, t->flags); \
    }

TILE(1) TILE(2) TILE(3) TILE(4)
#if REE_MR >= 6
TILE(5) TILE(6)
#endif
#if REE_MR >= 14
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
#endif

static const tile_function tiles[REE_MR + 1] = {
    0, tile_1, tile_2, tile_3, tile_4,
#if REE_MR >= 6
    tile_5, tile_6,
#endif
#if REE_MR >= 14
    tile_7, tile_8, tile_9, tile_10, tile_11, tile_12, tile_13, tile_14,
#endif
};

#endif
