/* Register tiles that fetch the panel of B that comes next while they work on this one.
 *
 * Where rows are few, B streams from far memory: every panel serves only a few tiles, and the processor's own
 * prefetching restarts at each page. Each tile of a panel fetches its share of the next one.
 */
#ifndef REE_TILE_NEXT_H
#define REE_TILE_NEXT_H

#include "tile.h"

enum { AHEAD = 8 * REE_NR * sizeof(float) }; /* rows of B fetched into the first cache before they are read */

/* next: what this tile fetches, next_step bytes per k. */
typedef void (*tile_next_function)(const tile_args *, int64_t cols, const char *next, int64_t next_step);

#define TILE_NEXT(rows)                                                                                               \
    static __attribute__((noinline)) void tile_next_##rows(const tile_args *t, int64_t cols, const char *next,        \
                                                         int64_t next_step)                                         \
    {                                                                                                               \
        if (!next)                                                                                                  \
            __builtin_unreachable();                                                                                \
        dot_tile(t, cols, (tile_shape){.mr = rows, .nv = REE_NV, .ahead = AHEAD}, next, next_step); \
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

/* One chunk of a panel: all its tiles over `rows` rows of A (TILE_A_ROW apart) and of C, while `next_row` bytes for
 * each k are fetched from `next` on. The tiles share the rows evenly: one of a row or two would wait for its FMAs. */
static inline void panel_tiles(tile_args t, int64_t rows, int64_t cols, const void *next, int64_t next_row)
{
    const int64_t count = (rows + REE_MR - 1) / REE_MR;
    const int64_t step = (next_row + count - 1) / count;
    const char *fetch = next;
    for (int64_t tile = count; tile > 0; tile--) {
        const int64_t mr = (rows + tile - 1) / tile;
        tiles_next[mr](&t, cols, fetch, step);
        t.a += mr * TILE_A_ROW;
        t.c += mr * t.c_row;
        rows -= mr;
        fetch += t.k_count * step;
    }
}

#endif
