/* Tiles for few rows, which read packed B from far memory, once, as floats or as bfloat16.
 *
 * Memory answers after hundreds of cycles, and the processor's own prefetching restarts at each page: so many bytes of
 * B are on their way, more of them where a tile spends longer on each. One row by one panel has too few independent
 * FMA chains to hide their latency, and one stream does not use the memory's bandwidth: wide tiles take several panels.
 */
#ifndef REE_WIDE_H
#define REE_WIDE_H

#include "tile.h"

enum { WIDE_ROWS = 4 }; /* at most, of a tile of several panels */

#define WIDE_1 (8 / REE_NV) /* panels: 8 vectors = 8 chains */
#define WIDE_2 (REE_MR >= 14 ? 4 : 8 / REE_NV < 2 ? 1 : 2)
#define WIDE_4 (REE_MR >= 14 ? 2 : 1)

#define FAR_BYTES(rows) ((rows) < 10 ? 8192 : 16384)
#define FAR_TILES(name, rows, panels)                                                                               \
    TILE_BODY(name##_##rows, .mr = rows, .nv = (panels) * REE_NV, .ahead = FAR_BYTES(rows) / (panels))              \
    TILE_BODY(name##_bf16_##rows, .mr = rows, .nv = (panels) * REE_NV, .ahead = FAR_BYTES(rows) / (panels), .bf16 = 1)
#define FAR(rows) FAR_TILES(far, rows, 1)

FAR(1) FAR(2) FAR(3) FAR(4)
#if REE_MR >= 6
FAR(5) FAR(6)
#endif
#if REE_MR >= 14
FAR(7) FAR(8) FAR(9) FAR(10) FAR(11) FAR(12) FAR(13) FAR(14)
#endif

/* One panel, for each number of rows. */
static const tile_function far_tiles[REE_MR + 1] = {
    0, far_1, far_2, far_3, far_4,
#if REE_MR >= 6
    far_5, far_6,
#endif
#if REE_MR >= 14
    far_7, far_8, far_9, far_10, far_11, far_12, far_13, far_14,
#endif
};
static const tile_function far_bf16_tiles[REE_MR + 1] = {
    0, far_bf16_1, far_bf16_2, far_bf16_3, far_bf16_4,
#if REE_MR >= 6
    far_bf16_5, far_bf16_6,
#endif
#if REE_MR >= 14
    far_bf16_7, far_bf16_8, far_bf16_9, far_bf16_10, far_bf16_11, far_bf16_12, far_bf16_13, far_bf16_14,
#endif
};

FAR_TILES(wide, 1, WIDE_1) FAR_TILES(wide, 2, WIDE_2) FAR_TILES(wide, 3, WIDE_4) FAR_TILES(wide, 4, WIDE_4)

static const struct {
    tile_function tile, tile_bf16;
    int64_t panels;
} wide_tiles[WIDE_ROWS + 1] = {
    {0, 0, 0},
    {wide_1, wide_bf16_1, WIDE_1},
    {wide_2, wide_bf16_2, WIDE_2},
    {wide_3, wide_bf16_3, WIDE_4},
    {wide_4, wide_bf16_4, WIDE_4},
};

#endif
