/* The register tiles as functions, chosen by the number of rows.
 *
 * A is copied so that its rows lie TILE_A_ROW floats apart (rows far apart share few cache sets;
 * 16 more than a chunk spreads them); B is one panel of packed B.
 */
#ifndef REE_TILE_H
#define REE_TILE_H

#include "dot.h"

enum { TILE_A_ROW = REE_CHUNK + 16 };

/* One chunk: k_count <= 256 of A, of B from its row k on, into `cols` columns of C. */
typedef struct {
    const float *a;
    const float *b;
    int64_t b_panel; /* floats from panel to panel: wide tiles only */
    float *c;
    int64_t c_row;
    int64_t k_count;
    int flags; /* TILE_FIRST, TILE_CANONICAL */
} tile_args;

typedef void (*tile_function)(const tile_args *, int64_t cols);

#define TILE_BODY(name, mr, nv, ahead)                                                                              \
    static __attribute__((noinline)) void name(const tile_args *t, int64_t cols)                                    \
    {                                                                                                               \
        dot_tile(mr, nv, t->k_count, t->a, TILE_A_ROW, t->b, REE_NR, t->b_panel, ahead, t->c, t->c_row, cols,       \
                 t->flags);                                                                                         \
    }
#define TILE(mr) TILE_BODY(tile_##mr, mr, REE_NV, 0)

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
