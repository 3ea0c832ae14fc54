/* `dot` for a tile of rows x columns by a block: the order of ree_kernels/c/dot.h, from operands in shared memory.
 *
 * Of each result a chain of FMAs runs over a chunk of 256 k in registers; chunk sums are added to a total, which waits
 * in shared memory meanwhile. So all registers are chains: 8 x 16 of them let a thread do 128 FMAs for 24 floats that
 * it reads, where 8 x 8 would need all that shared memory gives to an SM with 128 FMA lanes (sm_86 and later). Two
 * blocks of four warps fit an SM; each warp has FMAs enough to cover its own latencies.
 *
 * A lies as rows of REE_SLICE k (16 bytes that are copied stay together), 16 bytes of padding behind each: lanes read
 * float4 of 8 rows, which fall into all 32 banks. B lies as rows of columns. Slices come by cp.async, REE_STAGES - 1
 * ahead, with one barrier each.
 */
#ifndef REE_DOT_TILE_CUH
#define REE_DOT_TILE_CUH

#ifndef REE_TILE_M
#define REE_TILE_M 8   /* rows of a thread */
#define REE_TILE_N 16  /* its columns, a multiple of 4 */
#define REE_WARPS_M 2  /* warps of a block along rows, */
#define REE_WARPS_N 2  /* and along columns */
#define REE_SLICE 16   /* k's that are copied together: a multiple of 4, a divisor of 256 */
#define REE_STAGES 2   /* slices that shared memory holds */
#define REE_TILE_BLOCKS 2 /* of a multiprocessor: registers are given out for so many */
#endif
#ifndef REE_STORED_TOGETHER
#define REE_STORED_TOGETHER 4 /* fours of results whose epilogues' loads overlap */
#endif

#ifdef REE_TILE_BF16 /* B is bfloat16 */
typedef u16 tile_b;
#else
typedef f32 tile_b;
#endif

enum {
    LANES_M = 8, /* of a warp along rows, */
    LANES_N = 4, /* and along columns */
    TILE_ROWS = REE_TILE_M * LANES_M * REE_WARPS_M,
    TILE_COLUMNS = REE_TILE_N * LANES_N * REE_WARPS_N,
    TILE_THREADS = REE_WARP * REE_WARPS_M * REE_WARPS_N,
    A_ROW = REE_SLICE + 4, /* floats from row to row of A */
    A_PIECES = REE_SLICE / 4,
    B_PIECE = 16 / sizeof(tile_b), /* columns that are copied together */
    A_BYTES = TILE_ROWS * A_ROW * 4,
    STAGE_BYTES = A_BYTES + REE_SLICE * TILE_COLUMNS * static_cast<int>(sizeof(tile_b)),
    TOTALS_ROW = TILE_COLUMNS + 8, /* floats: rows 32 bytes apart in the banks, as wide as two lanes read */
};

#ifdef REE_EMULATED
#define TILE_BOUNDS TILE_THREADS
#else
#define TILE_BOUNDS TILE_THREADS, REE_TILE_BLOCKS
#endif

typedef f32 tile_chains[REE_TILE_M][REE_TILE_N];

/* Where a tile of a grid lies. Tiles are numbered so that those that run at a time share rows and columns in L2. */
struct tile_place {
    i64 row, column; /* its first ones */
};

REE_INLINE tile_place tile_place_of(i64 number, i64 row_tiles, i64 column_tiles)
{
    enum { TOGETHER = 8 }; /* rows of tiles that are walked column by column */
    const i64 first = number / (TOGETHER * column_tiles) * TOGETHER, left = row_tiles - first;
    const i64 rows = left < TOGETHER ? left : TOGETHER, within = number - first * column_tiles;
    return {(first + within % rows) * TILE_ROWS, within / rows * TILE_COLUMNS};
}

/* -- the parts of the block's work that are the thread's ------------------------------------------------ */
/* Lanes that differ in bit 0 read the same of B, in bit 1 the same of A: so half a warp's float4 come at once. */
REE_INLINE int tile_thread_row(void)
{
    const int warp = static_cast<int>(threadIdx.x / REE_WARP), lane = static_cast<int>(threadIdx.x % REE_WARP);
    return warp / REE_WARPS_N * (REE_TILE_M * LANES_M) + ((lane & 1) | (lane >> 2 & 3) << 1);
}

REE_INLINE int tile_thread_column(void)
{
    const int warp = static_cast<int>(threadIdx.x / REE_WARP), lane = static_cast<int>(threadIdx.x % REE_WARP);
    return warp % REE_WARPS_N * (REE_TILE_N * LANES_N) + ((lane >> 1 & 1) | lane >> 4 << 1) * 4;
}

REE_INLINE void tile_load4(f32 (&to)[4], const f32 *from)
{
    const float4 v = *reinterpret_cast<const float4 *>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

REE_INLINE void tile_load4(f32 (&to)[4], const u16 *from)
{
    const uint2 v = *reinterpret_cast<const uint2 *>(from);
    to[0] = f32_of_bits(v.x << 16), to[1] = f32_of_bits(v.x & 0xffff0000u);
    to[2] = f32_of_bits(v.y << 16), to[3] = f32_of_bits(v.y & 0xffff0000u);
}

/* The chains go on over a slice. a, b: of the stage, from the thread's first row, its first column. */
REE_INLINE void tile_slice(tile_chains &chain, const f32 *a, const tile_b *b)
{
#pragma unroll
    for (int k = 0; k < REE_SLICE; k += 4) {
        f32 left[REE_TILE_M][4];
#pragma unroll
        for (int i = 0; i < REE_TILE_M; i++)
            tile_load4(left[i], a + i * LANES_M * A_ROW + k);
#pragma unroll
        for (int step = 0; step < 4; step++)
#pragma unroll
            for (int j = 0; j < REE_TILE_N; j += 4) {
                f32 right[4];
                tile_load4(right, b + (k + step) * TILE_COLUMNS + j * LANES_N);
#pragma unroll
                for (int i = 0; i < REE_TILE_M; i++)
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        chain[i][j + c] = f32_fma(left[i][step], right[c], chain[i][j + c]);
            }
    }
}

/* Ends a chunk: totals += chains, from +0 if `first`; new chains begin. totals: from the thread's first row and column.
 * */
REE_INLINE void tile_add_chunk(tile_chains &chain, f32 *totals, bool first)
{
#pragma unroll
    for (int i = 0; i < REE_TILE_M; i++)
#pragma unroll
        for (int j = 0; j < REE_TILE_N; j += 4) {
            f32 *place = totals + i * LANES_M * TOTALS_ROW + j * LANES_N;
            f32 total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (!first)
                tile_load4(total, place);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                total[c] = f32_add(total[c], chain[i][j + c]);
                chain[i][j + c] = 0.0f;
            }
            *reinterpret_cast<float4 *>(place) = make_float4(total[0], total[1], total[2], total[3]);
        }
}

/* -- copies ---------------------------------------------------------------------------------------------- */
/* Copies slices of B, zeros beyond the k's and columns that there are. */
struct tile_b_copies {
    enum { PIECES = TILE_COLUMNS / B_PIECE, K_APART = TILE_THREADS / PIECES, COUNT = (REE_SLICE - 1) / K_APART + 1 };
    const tile_b *from; /* the thread's first piece at k = 0 */
    i64 row;
    i32 depth, k; /* how many k's there are; the thread's first one in a slice */
    bool exists;  /* the thread's columns */

    /* b: at k = 0 and the tile's first column; row: elements from k to k; columns: from b on. Both are multiples of
     * B_PIECE. */
    __device__ tile_b_copies(const tile_b *b, i64 row, i64 depth, i64 columns)
    {
        const int column = static_cast<int>(threadIdx.x) % PIECES * B_PIECE;
        k = static_cast<i32>(threadIdx.x) / PIECES;
        this->row = row;
        this->depth = static_cast<i32>(depth);
        from = b + k * row + column;
        exists = column < columns;
    }

    __device__ void load(i32 k0, tile_b *to) const
    {
        static_assert(TILE_THREADS % PIECES == 0, "a thread's pieces are of the same columns");
        const tile_b *piece = from + k0 * row;
        tile_b *own = to + threadIdx.x * B_PIECE;
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            if (REE_SLICE % K_APART == 0 || k + n * K_APART < REE_SLICE)
                ree_copy_async16(own, piece, exists & (k0 + k + n * K_APART < depth));
            piece += K_APART * row;
            own += TILE_THREADS * B_PIECE;
        }
    }
};

/* -- the block's loop ----------------------------------------------------------------------------------- */
/* Slices of the k's [k, end), one after another. */
struct tile_slices {
    i32 k, end;
    __device__ void next() { k += REE_SLICE; }
};

/* Totals of the block's tile, complete and visible to all its threads, in rows of TOTALS_ROW floats. `operands` copies:
 *   prepare(k): called some time before load(k), which need not wait then
 *   load(k, a, b): begin to copy the slice at k, zeros where there is none, to rows of A_ROW and of TILE_COLUMNS
 * totals may be the stages' memory where all slices are of one chunk. */
template <class Slices, class Operands>
REE_INLINE void tile_dot(Slices slices, Operands &operands, char *stages, f32 *totals)
{
    const int row = tile_thread_row(), column = tile_thread_column();
    f32 *const own = totals + row * TOTALS_ROW + column;
    tile_chains chain;
#pragma unroll
    for (int i = 0; i < REE_TILE_M; i++)
#pragma unroll
        for (int j = 0; j < REE_TILE_N; j++)
            chain[i][j] = 0.0f;
    Slices ahead = slices;
    const auto fetch = [&](int stage) {
        if (ahead.k < ahead.end) {
            char *to = stages + stage * STAGE_BYTES;
            operands.load(ahead.k, reinterpret_cast<f32 *>(to), reinterpret_cast<tile_b *>(to + A_BYTES));
            ahead.next();
            if (ahead.k < ahead.end)
                operands.prepare(ahead.k);
        }
        ree_copy_commit();
    };
    if (ahead.k < ahead.end)
        operands.prepare(ahead.k);
#pragma unroll
    for (int stage = 0; stage < REE_STAGES - 1; stage++)
        fetch(stage);
    bool first = true;
    int stage = 0, filled = REE_STAGES - 1;
#pragma unroll 1
    while (slices.k < slices.end) {
        ree_copy_wait<REE_STAGES - 2>();
        __syncthreads();
        fetch(filled);
        const char *from = stages + stage * STAGE_BYTES;
        tile_slice(chain, reinterpret_cast<const f32 *>(from) + row * A_ROW,
                   reinterpret_cast<const tile_b *>(from + A_BYTES) + column);
        const i32 chunk = slices.k / REE_CHUNK;
        slices.next();
        if (slices.k < slices.end && slices.k / REE_CHUNK != chunk) {
            tile_add_chunk(chain, own, first);
            first = false;
        }
        filled = stage;
        stage = stage + 1 == REE_STAGES ? 0 : stage + 1;
    }
    __syncthreads();
    tile_add_chunk(chain, own, first);
    __syncthreads();
}

/* -- results -------------------------------------------------------------------------------------------- */
/* The row of fours and the column of a tile's place `at`, in the order in which results lie in memory. */
REE_INLINE void tile_walk(int at, int &row, int &column)
{
#ifdef REE_EPILOGUE_DENSE
    row = at / (TILE_COLUMNS / 4), column = at % (TILE_COLUMNS / 4) * 4;
#else
    row = at % TILE_ROWS, column = at / TILE_ROWS * 4;
#endif
}

/* Run the epilogue on the tile's totals and store. row_of(r): the row of the tile's row r, or -1: it is none.
 * column0: number of the tile's first column; columns: where they end. */
template <class Row>
REE_INLINE void tile_store(const ree_epilogue_args &e, const f32 *totals, i64 column0, i64 columns, Row row_of)
{
    enum { FOURS = TILE_ROWS * TILE_COLUMNS / 4, TOGETHER = REE_STORED_TOGETHER };
#pragma unroll 1
    for (int base = static_cast<int>(threadIdx.x); base < FOURS; base += TOGETHER * TILE_THREADS) {
        ree_four fours[TOGETHER];
        i64 rows[TOGETHER], first[TOGETHER];
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            int r, c;
            tile_walk(base + n * TILE_THREADS, r, c);
            first[n] = column0 + c;
            rows[n] = base + n * TILE_THREADS < FOURS && first[n] < columns ? row_of(r) : -1;
            if (rows[n] < 0)
                continue;
            f32 total[4];
            tile_load4(total, totals + r * TOTALS_ROW + c);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (first[n] + i < columns)
                    fours[n].v[i] = ree_epilogue(e, rows[n], first[n] + i, total[i]);
        }
#pragma unroll
        for (int n = 0; n < TOGETHER; n++)
            if (rows[n] >= 0)
                ree_store_four(e, rows[n], first[n], columns, fours[n]);
    }
}

#endif
