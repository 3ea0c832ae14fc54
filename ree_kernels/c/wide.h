/* Wide tiles: few rows by several panels of packed B, for matrix-vector shapes.
 *
 * One row by one panel has too few independent FMA chains to hide their latency, and one stream does not
 * use the memory's bandwidth. Weights are read once here, so they are prefetched.
 */
#ifndef REE_WIDE_H
#define REE_WIDE_H

#include "tile.h"

#define WIDE_AHEAD (16 * REE_NR)

#define WIDE_1 (8 / REE_NV) /* panels: 8 vectors = 8 chains */
#define WIDE_2 (REE_MR >= 14 ? 4 : 8 / REE_NV < 2 ? 1 : 2)
#define WIDE_4 (REE_MR >= 14 ? 2 : 1)

#define WIDE(mr, panels) TILE_BODY(wide_##mr, mr, (panels) * REE_NV, WIDE_AHEAD)

WIDE(1, WIDE_1) WIDE(2, WIDE_2) WIDE(3, WIDE_4) WIDE(4, WIDE_4)
#if REE_MR >= 6
WIDE(5, 1) WIDE(6, 1)
#endif
#if REE_MR >= 14
WIDE(7, 1) WIDE(8, 1) WIDE(9, 1) WIDE(10, 1) WIDE(11, 1) WIDE(12, 1) WIDE(13, 1) WIDE(14, 1)
#endif

static const struct {
    tile_function tile;
    int64_t panels;
} wide_tiles[REE_MR + 1] = {
    {0, 0}, {wide_1, WIDE_1}, {wide_2, WIDE_2}, {wide_3, WIDE_4}, {wide_4, WIDE_4},
#if REE_MR >= 6
    {wide_5, 1}, {wide_6, 1},
#endif
#if REE_MR >= 14
    {wide_7, 1}, {wide_8, 1}, {wide_9, 1}, {wide_10, 1}, {wide_11, 1}, {wide_12, 1}, {wide_13, 1}, {wide_14, 1},
#endif
};

#endif
