/* Register tiles that fetch the panel of B that comes next while they work on this one.
 *
 * Where rows are few, B streams from far memory: every panel serves only a few tiles, and the processor's own
 * prefetching restarts at each page. Each tile of a panel fetches its share of the next one.
 */
#ifndef REE_TILE_NEXT_H
#define REE_TILE_NEXT_H

#include "tile.h"

enum { AHEAD = 8 * REE_NR }; /* rows of B fetched into the first cache before they are read */

/* next: what this tile fetches, next_step bytes per k. */
typedef void (*tile_next_function)(const tile_args *, int64_t cols, const char *next, int64_t next_step);

#define TILE_NEXT(mr)                                                                                               \
    static __attribute__((noinline)) void tile_next_##mr(const tile_args *t, int64_t cols, const char *next,        \
                                                         int64_t next_step)                                         \
    {                                                                                                               \
        if (!next)                                                                                                  \
            __builtin_unreachable();                                                                                \
        dot_tile_next(next, next_step, mr, REE_NV, t->k_count, t->a, TILE_A_ROW, t->b, REE_NR, 0, AHEAD,            \
                      t->c, t->c_row, cols, t->flags);                                                              \
    }

TILE_NEXT(1) TILE_NEXT(2) TILE_NEXT(3) TILE_NEXT(4)
#if REE_MR >= 6
TILE_NEXT(5) TILE_NEXT(6)
#endif
#if REE_MR >= 14
TILE_NEXT(7) TILE_NEXT(8) TILE_NEXT(9) TILE_NEXT(10) TILE_NEXT(11) TILE_NEXT(12) TILE_NEXT(13) TILE_NEXT(14)
#endif

static const tile_next_function tiles_next[REE_MR + 1] = {
    0, tile_next_1, tile_next_2, tile_next_3, tile_next_4,
#if REE_MR >= 6
    tile_next_5, tile_next_6,
#endif
#if REE_MR >= 14
    tile_next_7, tile_next_8, tile_next_9, tile_next_10, tile_next_11, tile_next_12, tile_next_13, tile_next_14,
#endif
};

/* One chunk of a panel: all its tiles over `rows` rows of A (TILE_A_ROW apart) and of C, while the k_count * REE_NR
 * floats at `next` are fetched. */
static inline void panel_tiles(tile_args t, int64_t rows, int64_t cols, const float *next)
{
    const int64_t count = (rows + REE_MR - 1) / REE_MR;
    const int64_t step = (REE_NR * (int64_t)sizeof(float) + count - 1) / count;
    const char *fetch = (const char *)next;
    for (int64_t r = 0; r < rows; r += REE_MR) {
        tiles_next[rows - r < REE_MR ? rows - r : REE_MR](&t, cols, fetch, step);
        t.a += REE_MR * TILE_A_ROW;
        t.c += REE_MR * t.c_row;
        fetch += t.k_count * step;
    }
}

#endif
