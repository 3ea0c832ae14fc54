/* Wide tiles: few rows by several panels of packed B, for matrix-vector shapes.
 *
 * One row by one panel has too few independent FMA chains to hide their latency, and one stream does not
 * use the memory's bandwidth.
 */
#ifndef REE_WIDE_H
#define REE_WIDE_H

#include "tile.h"

#define WIDE_ROWS 4 /* tiles of up to this many rows are wide */
#define WIDE_AHEAD (16 * REE_NR)

#define WIDE_1 (8 / REE_NV) /* panels: 8 vectors = 8 chains */
#define WIDE_2 (REE_MR >= 14 ? 4 : 8 / REE_NV > 2 ? 2 : 8 / REE_NV)
#define WIDE_4 (REE_MR >= 14 ? 2 : 1)

TILE_BODY(wide_1, 1, WIDE_1 * REE_NV, WIDE_AHEAD)
TILE_BODY(wide_2, 2, WIDE_2 * REE_NV, WIDE_AHEAD)
TILE_BODY(wide_3, 3, WIDE_4 * REE_NV, WIDE_AHEAD)
TILE_BODY(wide_4, 4, WIDE_4 * REE_NV, WIDE_AHEAD)

static const struct {
    tile_function tile;
    int64_t panels;
} wide_tiles[WIDE_ROWS + 1] = {{0, 0}, {wide_1, WIDE_1}, {wide_2, WIDE_2}, {wide_3, WIDE_4}, {wide_4, WIDE_4}};

#endif
