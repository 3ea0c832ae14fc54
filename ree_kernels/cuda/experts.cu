/* Rows times one of several matrices, which each row chooses: rows of one expert together, as tiles of dot_tile.cuh.
 *
 * ree_experts_group, one block, orders the rows by expert and cuts each expert's into tiles; ree_experts has a block
 * for each tile and each of its column tiles. Which rows share a tile, and in which order, changes no result.
 *
 * REE_EXPERTS_FOURS: x's rows lie side by side in fours, aligned; else element by element.
 */
#include "ree.cuh"
#include "epilogue.cuh"
#include "fours.cuh"
#include "dot_tile.cuh"

enum { GROUP_THREADS = 1024, GROUP_WARPS = GROUP_THREADS / REE_WARP };

/* A tile's rows: order[first] and count - 1 behind it. */
struct experts_tile {
    i32 expert, first, count, unused;
};

/* tiles: as many as there can be, the first i32 of the one behind them being their number. experts: at most 1024. */
struct ree_experts_group_args {
    const i64 *expert;
    i32 *order;
    i32 *tiles;
    i64 *status;
    i64 expert_step, rows, experts, tiles_max;
};

struct ree_experts_args {
    const f32 *x;
    const void *w; /* of each expert [k, w_row] */
    const i32 *order;
    const i32 *tiles;
    i64 x_row, x_k, n, k, w_row, tiles_max, column_tiles, totals_at;
    ree_epilogue_args e;
};

/* -- groups ------------------------------------------------------------------------------------------------ */
/* The sum of the values of all threads before this one. `warps` is used again when all have it. */
REE_INLINE i32 experts_sum_before(i32 value, i32 *warps)
{
    const int lane = static_cast<int>(threadIdx.x) % REE_WARP, warp = static_cast<int>(threadIdx.x) / REE_WARP;
    i32 sum = value;
#pragma unroll
    for (int step = 1; step < REE_WARP; step *= 2) {
        const i32 before = __shfl_up_sync(REE_ALL_LANES, sum, step);
        sum += lane >= step ? before : 0;
    }
    if (lane == REE_WARP - 1)
        warps[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; w++)
        sum += warps[w];
    __syncthreads();
    return sum - value;
}

#ifdef REE_EMULATED
#define GROUP_BOUNDS GROUP_THREADS
#else
#define GROUP_BOUNDS GROUP_THREADS, 1
#endif

REE_KERNEL(ree_experts_group, ree_experts_group_args, GROUP_BOUNDS)
{
    __shared__ i32 next[GROUP_THREADS]; /* of each expert: how many rows, then where the next one goes */
    __shared__ i32 warps[GROUP_WARPS];
    const i32 own = static_cast<i32>(threadIdx.x);
    next[own] = 0;
    __syncthreads();
    for (i64 row = own; row < a.rows; row += GROUP_THREADS) {
        const i64 expert = a.expert[row * a.expert_step];
        if (static_cast<u64>(expert) < static_cast<u64>(a.experts))
            atomicAdd(&next[expert], 1);
        else
            *reinterpret_cast<volatile i64 *>(a.status) = 1;
    }
    __syncthreads();
    const i32 count = next[own], count_tiles = (count + TILE_ROWS - 1) / TILE_ROWS;
    const i32 first = experts_sum_before(count, warps), first_tile = experts_sum_before(count_tiles, warps);
    experts_tile *const tiles = reinterpret_cast<experts_tile *>(a.tiles);
    for (i32 t = 0; t < count_tiles; t++) {
        const i32 done = t * TILE_ROWS, left = count - done;
        tiles[first_tile + t] = {own, first + done, left < TILE_ROWS ? left : static_cast<i32>(TILE_ROWS), 0};
    }
    if (own == GROUP_THREADS - 1)
        tiles[a.tiles_max].expert = first_tile + count_tiles;
    next[own] = first;
    __syncthreads();
    for (i64 row = own; row < a.rows; row += GROUP_THREADS) {
        const i64 expert = a.expert[row * a.expert_step];
        if (static_cast<u64>(expert) < static_cast<u64>(a.experts))
            a.order[atomicAdd(&next[expert], 1)] = static_cast<i32>(row);
    }
}

/* -- products ---------------------------------------------------------------------------------------------- */
/* Copies for tile_dot. rows: of the tile, in shared memory; behind the last one it is again. */
struct experts_operands {
    const ree_experts_args &a;
    const i32 *rows;
    tile_b_copies w;

    __device__ void prepare(i32) {}

    __device__ void load(i32 k, f32 *to_a, tile_b *to_b) const
    {
        load_a(k, to_a);
        w.load(k, to_b);
    }

    __device__ void load_a(i32 k, f32 *to) const
    {
#ifdef REE_EXPERTS_FOURS
        enum { PIECE = 4 };
#else
        enum { PIECE = 1 };
#endif
        enum { PIECES = REE_SLICE / PIECE, ROWS_APART = TILE_THREADS / PIECES };
        const int piece = static_cast<int>(threadIdx.x) % PIECES, first = static_cast<int>(threadIdx.x) / PIECES;
        const bool exists = k + PIECE * piece < w.depth;
        const f32 *const from = a.x + (k + PIECE * piece) * a.x_k;
#pragma unroll
        for (int n = 0; n < (TILE_ROWS + ROWS_APART - 1) / ROWS_APART; n++) {
            const int row = first + n * ROWS_APART;
            if (TILE_ROWS % ROWS_APART != 0 && row >= TILE_ROWS)
                continue;
            f32 *const at = to + row * A_ROW + PIECE * piece;
            if (PIECE == 4)
                ree_copy_async16(at, from + rows[row] * a.x_row, exists);
            else
                ree_copy_async4(at, from + rows[row] * a.x_row, exists);
        }
    }
};

REE_KERNEL(ree_experts, ree_experts_args, TILE_BOUNDS)
{
    __shared__ i32 rows[TILE_ROWS];
    const experts_tile *const tiles = reinterpret_cast<const experts_tile *>(a.tiles);
    const i64 count = tiles[a.tiles_max].expert;
    if (blockIdx.x >= count * a.column_tiles)
        return;
    const tile_place place = tile_place_of(blockIdx.x, count, a.column_tiles); /* neighbours mostly share an expert */
    const experts_tile tile = tiles[place.row / TILE_ROWS];
    const i64 column = place.column;
    for (int r = static_cast<int>(threadIdx.x); r < TILE_ROWS; r += TILE_THREADS)
        rows[r] = a.order[tile.first + (r < tile.count ? r : tile.count - 1)];
    __syncthreads();
    const tile_b *const w = static_cast<const tile_b *>(a.w) + tile.expert * a.k * a.w_row + column;
    experts_operands operands = {a, rows, tile_b_copies(w, a.w_row, a.k, a.w_row - column)};
    char *const stages = ree_shared();
    f32 *const totals = reinterpret_cast<f32 *>(stages + a.totals_at);
    tile_dot(tile_slices{0, static_cast<i32>(a.k)}, operands, stages, totals);
    tile_store(a.e, totals, column, a.n, [&](int r) -> i64 { return r < tile.count ? rows[r] : -1; });
}
