/* The register tiles as functions, chosen by the number of rows: one panel of packed B. */
#ifndef REE_TILE_H
#define REE_TILE_H

#include "dot.h"

typedef void (*tile_function)(const tile_args *, int64_t cols);

#define TILE_BODY(name, ...)                                                                                        \
    static __attribute__((noinline)) void name(const tile_args *t, int64_t cols)                                    \
    {                                                                                                               \
        dot_tile(t, cols, (tile_shape){__VA_ARGS__}, 0, 0);                                                         \
    }
#define TILE(rows) TILE_BODY(tile_##rows, .mr = rows, .nv = REE_NV)

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
