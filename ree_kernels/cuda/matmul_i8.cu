/* C = A B of signed bytes in 32-bit integers, exact modulo 2^32, B packed: by tensor cores. Sums of integers have no
 * order.
 *
 * The products are computed transposed: an mma's left operand are 16 columns of B, its right one 8 rows of A. For it a
 * lane holds four k's in two places; which ones does not matter, if both operands agree. So a lane reads of a row of A
 * 16 bytes side by side, which are its parts of two mma as they stand in registers, and of B, which is packed in the
 * order of fragments, 16 bytes for each of the two. Eight lanes read 128 bytes side by side: no bank of shared memory
 * is asked twice, and packed B comes from memory in whole lines.
 *
 * Packed B: for each 16 columns, for each 64 k (a slice, filled up with zeros), for each of two mma, for each lane
 * 4 g + t, whose first k is 16 t + 8 * mma: four of column g, of column g + 8, then the next four k's of both.
 *
 * ree_matmul_i8: a tile of C by a block, slices of A and B in shared memory, REE_I8_STAGES - 1 of them ahead.
 * ree_matmul_i8_few: up to 32 rows, where B's way from memory is the bound: warps share out the slices, B goes straight
 * to registers, many loads ahead. ree_matmul_i8_sum adds the parts of k that different blocks computed;
 * ree_matmul_i8_rows copies rows of A that are not aligned to 16 bytes, or whose elements are not side by side.
 */
#include "ree.cuh"

#ifndef REE_I8_TILES_M
#define REE_I8_TILES_M 8 /* of 8 rows, of a warp */
#define REE_I8_TILES_N 4 /* of 16 columns */
#define REE_I8_WARPS_M 2 /* of a block */
#define REE_I8_WARPS_N 4
#define REE_I8_STAGES 4
#define REE_I8_BLOCKS 1 /* of a multiprocessor: registers are given out for so many */
#endif
#ifndef REE_I8_FEW_M
#define REE_I8_FEW_M 1     /* tiles of 8 rows, at most 4 */
#define REE_I8_FEW_N 2     /* tiles of 16 columns of a block */
#define REE_I8_FEW_SLICES 2 /* of a warp, whose loads are in flight together */
#endif

enum { SLICE = 64, PIECE = 16, PIECES = SLICE / PIECE, B_TILE = 16 * SLICE, B_STEP = B_TILE / 2 };
enum {
    TILE_M = 8 * REE_I8_TILES_M * REE_I8_WARPS_M,
    TILE_N = 16 * REE_I8_TILES_N * REE_I8_WARPS_N,
    THREADS = REE_WARP * REE_I8_WARPS_M * REE_I8_WARPS_N,
    STAGE_BYTES = (TILE_M + TILE_N) * SLICE,
    ROWS_APART = THREADS / PIECES, /* of a thread's pieces: rows of A or columns of B */
    FEW_WARPS = 8,
};

/* rows of A: k bytes, a multiple of 16, a_row apart, 16-byte aligned. slices: of a part of k. c: [parts][m][n]. */
struct ree_matmul_i8_args {
    const i8 *a;
    const i8 *b;
    i32 *c;
    i64 a_row, m, n, k;
    i64 slices;
    i64 row_tiles, column_tiles;
};

/* [m, k] at a[row * a_row + k * a_k] to rows of `row` bytes, filled up with zeros. */
struct ree_matmul_i8_rows_args {
    const i8 *a;
    i8 *rows;
    i64 a_row, a_k, m, k, row;
};

struct ree_matmul_i8_sum_args {
    const i32 *parts; /* [count][elements] */
    i32 *c;
    i64 count, elements;
};

/* Few rows: two blocks of a multiprocessor are enough, registers are for loads that are in flight. */
#ifdef REE_EMULATED
#define BOUNDS THREADS
#define FEW_BOUNDS (FEW_WARPS * REE_WARP)
#else
#define BOUNDS THREADS, REE_I8_BLOCKS
#define FEW_BOUNDS FEW_WARPS *REE_WARP, 2
#endif

REE_INLINE uint4 i8_load(const i8 *from) { return *reinterpret_cast<const uint4 *>(from); }

/* sums += 16 columns x 64 k of B times 64 k x 8 rows of A; b: of either mma. */
REE_INLINE void i8_multiply(i32 (&sums)[4], const uint4 (&b)[2], const uint4 &a)
{
    const u32 columns[2][4] = {{b[0].x, b[0].y, b[0].z, b[0].w}, {b[1].x, b[1].y, b[1].z, b[1].w}};
    const u32 rows[2][2] = {{a.x, a.y}, {a.z, a.w}};
    ree_mma_s8(sums, columns[0], rows[0]);
    ree_mma_s8(sums, columns[1], rows[1]);
}

/* The sums of 8 rows and 16 columns from (row, column) on. */
REE_INLINE void i8_store(i32 *c, i64 m, i64 n, i64 row, i64 column, const i32 (&sums)[4])
{
    const int lane = static_cast<int>(threadIdx.x) % REE_WARP;
    row += lane % 4 * 2;
    column += lane / 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (row + i % 2 < m && column + i / 2 * 8 < n)
            c[(row + i % 2) * n + column + i / 2 * 8] = sums[i];
}

/* -- tiles ------------------------------------------------------------------------------------------------- */
/* What a thread copies of each slice: pieces of the same k of some rows and columns. */
struct i8_copies {
    const ree_matmul_i8_args &g;
    const i8 *a, *b; /* its first piece at k = 0 */
    i64 rows_left, columns_left, slices;
    i32 piece, own;  /* its piece's number within a row, where its first piece goes */

    __device__ i8_copies(const ree_matmul_i8_args &g, i64 row, i64 column) : g(g)
    {
        const i32 line = static_cast<i32>(threadIdx.x) / PIECES;
        piece = static_cast<i32>(threadIdx.x) % PIECES;
        own = static_cast<i32>(threadIdx.x) * PIECE;
        slices = (g.k + SLICE - 1) / SLICE;
        rows_left = g.m - row - line;
        columns_left = (g.n + 15) / 16 * 16 - column - line;
        a = g.a + (row + line) * g.a_row + piece * PIECE;
        b = g.b + (column + line) / 16 * slices * B_TILE + own % B_TILE;
    }

    __device__ void load(i64 slice, char *stage) const
    {
        static_assert(ROWS_APART % 16 == 0 && TILE_M % ROWS_APART == 0 && TILE_N % ROWS_APART == 0, "whole pieces");
        const bool exists = slice * SLICE + piece * PIECE < g.k;
        const i8 *from = a + slice * SLICE;
        char *to = stage + own;
#pragma unroll
        for (int n = 0; n < TILE_M / ROWS_APART; n++, to += ROWS_APART * SLICE, from += ROWS_APART * g.a_row)
            ree_copy_async16(to, from, exists & (n * ROWS_APART < rows_left));
        from = b + slice * B_TILE;
#pragma unroll
        for (int n = 0; n < TILE_N / ROWS_APART; n++, to += ROWS_APART * SLICE, from += ROWS_APART * slices * SLICE)
            ree_copy_async16(to, from, n * ROWS_APART < columns_left);
    }
};

typedef i32 i8_sums[REE_I8_TILES_M][REE_I8_TILES_N][4];

/* a, b: of the stage, from the lane's place in the warp's first row and columns. */
REE_INLINE void i8_slice(i8_sums &sums, const i8 *a, const i8 *b)
{
    uint4 columns[REE_I8_TILES_N][2];
#pragma unroll
    for (int j = 0; j < REE_I8_TILES_N; j++) {
        columns[j][0] = i8_load(b + j * B_TILE);
        columns[j][1] = i8_load(b + j * B_TILE + B_STEP);
    }
#pragma unroll
    for (int i = 0; i < REE_I8_TILES_M; i++) {
        const uint4 rows = i8_load(a + 8 * i * SLICE);
#pragma unroll
        for (int j = 0; j < REE_I8_TILES_N; j++)
            i8_multiply(sums[i][j], columns[j], rows);
    }
}

/* Tiles are numbered so that those that run at a time share rows and columns in L2. */
REE_INLINE void i8_place(const ree_matmul_i8_args &g, i64 &row, i64 &column)
{
    enum { TOGETHER = 8 }; /* rows of tiles that are walked column by column */
    const i64 number = blockIdx.x, first = number / (TOGETHER * g.column_tiles) * TOGETHER;
    const i64 left = g.row_tiles - first, rows = left < TOGETHER ? left : TOGETHER;
    const i64 within = number - first * g.column_tiles;
    row = (first + within % rows) * TILE_M;
    column = within / rows * TILE_N;
}

REE_KERNEL(ree_matmul_i8, ree_matmul_i8_args, BOUNDS)
{
    i64 row, column;
    i8_place(a, row, column);
    const i8_copies copies(a, row, column);
    const i64 part = blockIdx.y, first = part * a.slices, left = copies.slices - first;
    const i64 count = left < a.slices ? left : a.slices;
    char *const stages = ree_shared();
    const int warp = static_cast<int>(threadIdx.x) / REE_WARP, lane = static_cast<int>(threadIdx.x) % REE_WARP;
    const int warp_row = warp / REE_I8_WARPS_N * 8 * REE_I8_TILES_M;
    const int warp_column = warp % REE_I8_WARPS_N * 16 * REE_I8_TILES_N;
    const int own_a = warp_row * SLICE + lane * PIECE, own_b = (TILE_M + warp_column) * SLICE + lane * PIECE;
    i8_sums sums;
#pragma unroll
    for (int i = 0; i < REE_I8_TILES_M; i++)
#pragma unroll
        for (int j = 0; j < REE_I8_TILES_N; j++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                sums[i][j][r] = 0;
#pragma unroll
    for (int stage = 0; stage < REE_I8_STAGES - 1; stage++) {
        if (stage < count)
            copies.load(first + stage, stages + stage * STAGE_BYTES);
        ree_copy_commit();
    }
    int stage = 0, filled = REE_I8_STAGES - 1;
#pragma unroll 1
    for (i64 slice = 0; slice < count; slice++) {
        ree_copy_wait<REE_I8_STAGES - 2>();
        __syncthreads();
        if (slice + REE_I8_STAGES - 1 < count)
            copies.load(first + slice + REE_I8_STAGES - 1, stages + filled * STAGE_BYTES);
        ree_copy_commit();
        const i8 *from = reinterpret_cast<const i8 *>(stages + stage * STAGE_BYTES);
        i8_slice(sums, from + own_a, from + own_b);
        filled = stage;
        stage = stage + 1 == REE_I8_STAGES ? 0 : stage + 1;
    }
    i32 *const c = a.c + part * a.m * a.n;
#pragma unroll
    for (int i = 0; i < REE_I8_TILES_M; i++)
#pragma unroll
        for (int j = 0; j < REE_I8_TILES_N; j++)
            i8_store(c, a.m, a.n, row + warp_row + 8 * i, column + warp_column + 16 * j, sums[i][j]);
}

/* -- few rows ------------------------------------------------------------------------------------------------ */
typedef i32 i8_few_sums[REE_I8_FEW_M][REE_I8_FEW_N][4];

/* What the lane reads of rows and columns in a slice, or zeros. */
REE_INLINE uint4 i8_few_rows(const ree_matmul_i8_args &g, i64 row, i64 slice)
{
    const int lane = static_cast<int>(threadIdx.x) % REE_WARP;
    const i64 k = slice * SLICE + lane % 4 * PIECE;
    row += lane / 4;
    return row < g.m && k < g.k ? i8_load(g.a + row * g.a_row + k) : make_uint4(0, 0, 0, 0);
}

REE_INLINE void i8_few_columns(const ree_matmul_i8_args &g, i64 tile, i64 slice, i64 slices, uint4 (&columns)[2])
{
    const bool exists = slice < slices && tile < (g.n + 15) / 16;
    const i8 *const from = g.b + (tile * slices + slice) * B_TILE + threadIdx.x % REE_WARP * PIECE;
    columns[0] = exists ? i8_load(from) : make_uint4(0, 0, 0, 0);
    columns[1] = exists ? i8_load(from + B_STEP) : make_uint4(0, 0, 0, 0);
}

/* The warp's slices: number `warp` and every FEW_WARPS-th of those behind it. */
REE_INLINE void i8_few_slices(const ree_matmul_i8_args &g, i64 tile, int warp, i8_few_sums &sums)
{
    const i64 slices = (g.k + SLICE - 1) / SLICE;
#pragma unroll 1
    for (i64 slice = warp; slice < slices; slice += REE_I8_FEW_SLICES * FEW_WARPS) {
        uint4 columns[REE_I8_FEW_SLICES][REE_I8_FEW_N][2], rows[REE_I8_FEW_SLICES][REE_I8_FEW_M];
#pragma unroll
        for (int s = 0; s < REE_I8_FEW_SLICES; s++) {
#pragma unroll
            for (int j = 0; j < REE_I8_FEW_N; j++)
                i8_few_columns(g, tile + j, slice + s * FEW_WARPS, slices, columns[s][j]);
#pragma unroll
            for (int i = 0; i < REE_I8_FEW_M; i++)
                rows[s][i] = i8_few_rows(g, 8 * i, slice + s * FEW_WARPS);
        }
#pragma unroll
        for (int s = 0; s < REE_I8_FEW_SLICES; s++)
#pragma unroll
            for (int i = 0; i < REE_I8_FEW_M; i++)
#pragma unroll
                for (int j = 0; j < REE_I8_FEW_N; j++)
                    i8_multiply(sums[i][j], columns[s][j], rows[s][i]);
    }
}

REE_KERNEL(ree_matmul_i8_few, ree_matmul_i8_args, FEW_BOUNDS)
{
    enum { ALL = REE_I8_FEW_M * REE_I8_FEW_N, SUMS = ALL * 4 }; /* of a lane */
    __shared__ i32 of_warps[FEW_WARPS][SUMS][REE_WARP];
    const int warp = static_cast<int>(threadIdx.x) / REE_WARP, lane = static_cast<int>(threadIdx.x) % REE_WARP;
    const i64 tile = static_cast<i64>(blockIdx.x) * REE_I8_FEW_N;
    i8_few_sums sums;
#pragma unroll
    for (int i = 0; i < REE_I8_FEW_M; i++)
#pragma unroll
        for (int j = 0; j < REE_I8_FEW_N; j++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                sums[i][j][r] = 0;
    i8_few_slices(a, tile, warp, sums);
#pragma unroll
    for (int n = 0; n < SUMS; n++)
        of_warps[warp][n][lane] = sums[n / 4 / REE_I8_FEW_N][n / 4 % REE_I8_FEW_N][n % 4];
    __syncthreads();
    for (int n = warp; n < ALL; n += FEW_WARPS) {
        u32 total[4] = {0, 0, 0, 0};
        for (int w = 0; w < FEW_WARPS; w++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                total[r] += static_cast<u32>(of_warps[w][4 * n + r][lane]);
        const i32 result[4] = {static_cast<i32>(total[0]), static_cast<i32>(total[1]), static_cast<i32>(total[2]),
                               static_cast<i32>(total[3])};
        i8_store(a.c, a.m, a.n, n / REE_I8_FEW_N * 8, (tile + n % REE_I8_FEW_N) * 16, result);
    }
}

/* -- around them --------------------------------------------------------------------------------------------- */
REE_KERNEL(ree_matmul_i8_sum, ree_matmul_i8_sum_args, 256)
{
    const i64 element = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= a.elements)
        return;
    u32 sum = 0;
#pragma unroll 8
    for (i64 part = 0; part < a.count; part++)
        sum += static_cast<u32>(a.parts[part * a.elements + element]);
    a.c[element] = static_cast<i32>(sum);
}

/* A thread's four bytes. */
REE_KERNEL(ree_matmul_i8_rows, ree_matmul_i8_rows_args, 256)
{
    const i64 word = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x, words = a.row / 4;
    if (word >= a.m * words)
        return;
    const i64 row = word / words, k = word % words * 4;
    u32 bytes = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (k + i < a.k)
            bytes |= static_cast<u32>(static_cast<u8>(a.a[row * a.a_row + (k + i) * a.a_k])) << 8 * i;
    reinterpret_cast<u32 *>(a.rows)[word] = bytes;
}
