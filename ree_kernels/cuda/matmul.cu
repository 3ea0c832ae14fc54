/* C = A B in the `dot` order: tiles of C by blocks, whose groups of threads share out the chunks of k.
 *
 * A group of threads computes the whole tile for one chunk of 256 k at a time, TM x TN results a thread, from operands
 * that are copied into shared memory STAGES - 1 steps ahead. Where there is more than one group, group g takes chunks
 * g, g + GROUPS, ...; each round of theirs ends with the groups adding their chunk sums to the totals one after
 * another. Totals wait in shared memory: registers hold the chains alone. So few tiles with many k still fill the
 * device, and with REE_MATMUL_SPLIT, blocks share out the rounds as well: their chunk sums go to memory, and
 * ree_chunk_sums adds them.
 *
 * Macros: REE_MATMUL_BM, _BN: the tile; _TM, _TN: a thread's part, multiples of 4; _LANE_ROWS: threads of a warp along
 * rows, 4 or 8; _GROUPS; _STEP: k of a step, 8 or 16; _STAGES; _BLOCKS: blocks that a multiprocessor should hold;
 * _A, _B: how operands lie (matmul.cuh); _SPLIT; _SHORT: k <= 256 and one group, so there are no totals to keep.
 * BM, BN, and the numbers of threads are powers of two.
 */
#include "ree.cuh"
#include "epilogue.cuh"
#include "matmul.cuh"

struct ree_matmul_args {
    const f32 *a;
    const void *b;
    f32 *sums;                  /* split: [chunk][rows][n] */
    i64 m, n, k, rows;          /* rows: m of all batch items together */
    i64 a_row, a_k, b_k, b_col; /* strides in elements; b_col is from panel to panel where B has panels */
    i64 splits;                 /* how many blocks share the rounds of a tile */
    i64 batch[4], a_batch[4], b_batch[4];
    ree_epilogue_args e;
};

#define BM REE_MATMUL_BM
#define BN REE_MATMUL_BN
#define TM REE_MATMUL_TM
#define TN REE_MATMUL_TN
#define STEP REE_MATMUL_STEP
#define STAGES REE_MATMUL_STAGES
#define GROUPS REE_MATMUL_GROUPS

enum {
    LANE_ROWS = REE_MATMUL_LANE_ROWS,
    LANE_COLS = REE_WARP / LANE_ROWS,
    GROUP_THREADS = BM / TM * (BN / TN),
    THREADS = GROUPS * GROUP_THREADS,
    WARPS_ALONG_N = BN / (LANE_COLS * TN),
    CHUNK_STEPS = REE_CHUNK / STEP,
    CARRIED = GROUPS == 1, /* the first operands of a step are read before the one before it ends; costs registers */
    BAND = 16 /* rows of tiles that blocks with neighbouring numbers share columns in: operands stay in the L2 cache */
};
typedef ree_matmul_operand<BM, STEP, GROUPS, THREADS, REE_MATMUL_A> operand_a;
typedef ree_matmul_operand<BN, STEP, GROUPS, THREADS, REE_MATMUL_B> operand_b;

/* Shared memory: the stages, A and B each, and two steps of B that were widened; then the totals, which take the
 * stages'
 * place if SHORT. */
enum {
    WIDENED = operand_b::is_bf16,
    STAGE_BYTES = operand_a::stage_bytes + operand_b::stage_bytes,
    RING_BYTES = STAGES * STAGE_BYTES,
    WIDENED_BYTES = WIDENED ? 4 * GROUPS * operand_b::floats : 0,
    TOTALS = REE_MATMUL_SHORT ? 0 : RING_BYTES + 2 * WIDENED_BYTES
};

/* A thread's place in the tile of its group. Lanes that differ in bit 0 read the same of B, in bit 1 the same of A, so
 * that a warp's load of 16 bytes a lane takes two passes. */
struct place {
    int row, col; /* of the thread's first 4 x 4; the others lie LANE_ROWS * 4 rows, LANE_COLS * 4 columns on */

    __device__ place(int thread)
    {
        const int lane = thread % REE_WARP, warp = thread / REE_WARP;
        const int y = LANE_ROWS == 4 ? (lane & 1) | lane >> 4 << 1 : (lane & 1) | (lane >> 2 & 3) << 1;
        const int x = LANE_ROWS == 4 ? lane >> 1 & 7 : (lane >> 1 & 1) | lane >> 4 << 1;
        row = warp / WARPS_ALONG_N * (LANE_ROWS * TM) + y * 4;
        col = warp % WARPS_ALONG_N * (LANE_COLS * TN) + x * 4;
    }
    static REE_INLINE int rows_on(int i) { return i / 4 * (LANE_ROWS * 4) + i % 4; }
    static REE_INLINE int cols_on(int j) { return j / 4 * (LANE_COLS * 4) + j % 4; }
};

/* Where the total of (row, col) of the tile lies, col being a multiple of 4: neighbouring rows of a warp's load in
 * different banks. It goes on evenly to a thread's other rows and columns. */
REE_INLINE int total_at(int row, int col) { return row * BN + (col ^ (row >> 2 & 1) * (LANE_COLS * 2)); }

REE_INLINE float4 plus(float4 a, const f32 *b)
{
    return make_float4(f32_add(a.x, b[0]), f32_add(a.y, b[1]), f32_add(a.z, b[2]), f32_add(a.w, b[3]));
}

REE_INLINE void add_to_totals(f32 *totals, const place &p, const f32 (&acc)[TM][TN], bool is_first)
{
    f32 *const own = totals + total_at(p.row, p.col);
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j += 4) {
            float4 *const at = reinterpret_cast<float4 *>(own + place::rows_on(i) * BN + place::cols_on(j));
            *at = plus(is_first ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : *at, &acc[i][j]);
        }
}

/* Which tile of which batch item a block has, and which share of its rounds. */
struct tile {
    u32 item, split;
    int row, col;
};

REE_INLINE tile tile_of(const ree_matmul_args &a, u32 block)
{
    tile t;
    const u32 along_m = static_cast<u32>((a.m + BM - 1) / BM), along_n = static_cast<u32>((a.n + BN - 1) / BN);
    const u32 tiles = along_m * along_n, id = block % tiles, rest = block / tiles;
    const u32 band = id / (BAND * along_n), place = id % (BAND * along_n);
    const u32 left = along_m - band * BAND, height = left < BAND ? left : BAND;
    t.row = static_cast<int>((band * BAND + place % height) * BM);
    t.col = static_cast<int>(place / height * BN);
    t.split = rest % static_cast<u32>(a.splits);
    t.item = rest / static_cast<u32>(a.splits);
    return t;
}

/* The same value, but new to the compiler: what follows from it is computed again, where it is needed, instead of being
 * kept in registers through the main loop. */
REE_INLINE u32 again(u32 x) { return __shfl_sync(REE_ALL_LANES, x, static_cast<int>(threadIdx.x % REE_WARP)); }

REE_INLINE i64 batch_offset(const ree_matmul_args &a, const i64 (&strides)[4], u32 item)
{
    i64 offset = 0;
#pragma unroll
    for (int axis = 3; axis >= 0; axis--) {
        if (item == 0)
            break;
        const u32 extent = static_cast<u32>(a.batch[axis]);
        offset += item % extent * strides[axis];
        item /= extent;
    }
    return offset;
}

/* Run the epilogue on the results of a tile, which lie as totals do. */
REE_INLINE void store_tile(const ree_matmul_args &a, const tile &t, const f32 *totals)
{
    const i64 first_row = t.item * a.m + t.row, first_col = t.col;
    const int rows = ree_difference(a.m, t.row), cols = ree_difference(a.n, t.col);
#ifdef REE_EPILOGUE
    enum { AT_ONCE = 4 }; /* whose loads overlap */
#pragma unroll 1
    for (int element = static_cast<int>(threadIdx.x); element < BM * BN; element += AT_ONCE * THREADS) {
        ree_epilogue_raw values[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int row = (element + i * THREADS) / BN, col = (element + i * THREADS) % BN;
            if (row < rows && col < cols)
                values[i] = ree_epilogue(a.e, first_row + row, first_col + col, totals[total_at(row, col)]);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int row = (element + i * THREADS) / BN, col = (element + i * THREADS) % BN;
            if (row < rows && col < cols)
                *ree_epilogue_at(a.e, first_row + row, first_col + col) = values[i];
        }
    }
#else
    const bool aligned = (reinterpret_cast<u64>(a.e.out) | static_cast<u64>(4 * a.e.out_row)) % 16 == 0;
#pragma unroll 1
    for (int element = 4 * static_cast<int>(threadIdx.x); element < BM * BN; element += 4 * THREADS) {
        const int row = element / BN, col = element % BN;
        if (row >= rows || col >= cols)
            continue;
        const float4 x = *reinterpret_cast<const float4 *>(totals + total_at(row, col));
        const f32 values[4] = {f32_canonical(x.x), f32_canonical(x.y), f32_canonical(x.z), f32_canonical(x.w)};
        f32 *const at = ree_epilogue_at(a.e, first_row + row, first_col + col);
        if (aligned && col + 3 < cols) {
            *reinterpret_cast<float4 *>(at) = make_float4(values[0], values[1], values[2], values[3]);
            continue;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (col + i < cols)
                at[i] = values[i];
    }
#endif
}

/* Chunk sums of one group, to memory. */
REE_INLINE void store_sums(const ree_matmul_args &a, const tile &t, i64 chunk, const place &p, const f32 (&acc)[TM][TN])
{
    const int rows = ree_difference(a.m, t.row), cols = ree_difference(a.n, t.col);
    f32 *const sums = a.sums + (chunk * a.rows + t.item * a.m + t.row + p.row) * a.n + t.col + p.col;
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j += 4) {
            const int row = place::rows_on(i), col = place::cols_on(j), left = cols - p.col - col;
            f32 *const at = sums + row * a.n + col;
            if (p.row + row >= rows || chunk * REE_CHUNK >= a.k)
                continue;
            if (a.n % 4 == 0) {
                if (left > 0)
                    *reinterpret_cast<float4 *>(at) =
                        make_float4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]);
                continue;
            }
#pragma unroll
            for (int l = 0; l < 4; l++)
                if (l < left)
                    at[l] = acc[i][j + l];
        }
}

#ifdef REE_EMULATED
#define BOUNDS THREADS
#else
#define BOUNDS THREADS, REE_MATMUL_BLOCKS
#endif

REE_KERNEL(ree_matmul, ree_matmul_args, BOUNDS)
{
    const tile t = tile_of(a, blockIdx.x);
    const int thread = static_cast<int>(threadIdx.x);
    const int group = GROUPS == 1 ? 0 : thread / GROUP_THREADS;
    const place p(thread % GROUP_THREADS);
    char *const stages = ree_shared();
    f32 *const totals = reinterpret_cast<f32 *>(stages + TOTALS);

    enum { ROUND = GROUPS * REE_CHUNK };
    ree_rounds rounds = {0, static_cast<int>((a.k + ROUND - 1) / ROUND)};
    if (REE_MATMUL_SPLIT)
        rounds = ree_shared_rounds(rounds.end, t.split, a.splits);

    const operand_a copy_a(thread, ree_difference(a.m, t.row), static_cast<int>(a.a_row), static_cast<int>(a.a_k));
    const operand_b copy_b(thread, ree_difference(a.n, t.col), static_cast<int>(a.b_col), static_cast<int>(a.b_k));
    const i64 first_k = static_cast<i64>(rounds.first) * ROUND;
    const char *from_a = reinterpret_cast<const char *>(a.a + batch_offset(a, a.a_batch, t.item) + t.row * a.a_row) +
                         first_k * copy_a.k_bytes;
    const char *from_b = static_cast<const char *>(a.b) + first_k * copy_b.k_bytes +
                         operand_b::item_bytes * (batch_offset(a, a.b_batch, t.item) +
                                                  (operand_b::is_panel ? t.col / REE_PANEL : t.col) * a.b_col);
    int left = ree_difference(a.k, first_k), to = 0, round_left = CHUNK_STEPS;

    /* begin to copy the step that comes after those that have been begun: A, then B */
    auto copy_step = [&](bool with_a, bool with_b) {
        char *const stage_a = stages + to, *const stage_b = stage_a + operand_a::stage_bytes;
        if (GROUPS > 1 && left >= ROUND) {
            if (with_a)
                copy_a.copy<true>(stage_a, thread, from_a, left);
            if (with_b)
                copy_b.copy<true>(stage_b, thread, from_b, left);
        } else {
            if (with_a)
                copy_a.copy<false>(stage_a, thread, from_a, left);
            if (with_b)
                copy_b.copy<false>(stage_b, thread, from_b, left);
        }
        if (!with_b)
            return;
        ree_copy_commit();
        to = to + STAGE_BYTES == RING_BYTES ? 0 : to + STAGE_BYTES;
        from_a += STEP * copy_a.k_bytes;
        from_b += STEP * copy_b.k_bytes;
        left -= STEP;
        if (GROUPS > 1 && --round_left == 0) { /* over the chunks of the other groups */
            round_left = CHUNK_STEPS;
            from_a += (GROUPS - 1) * REE_CHUNK * copy_a.k_bytes;
            from_b += (GROUPS - 1) * REE_CHUNK * copy_b.k_bytes;
            left -= (GROUPS - 1) * REE_CHUNK;
        }
    };

    const char *const first_a = stages + 4 * (group * operand_a::floats + p.row);
    const char *const first_b =
        stages + (WIDENED ? RING_BYTES : operand_a::stage_bytes) + 4 * (group * operand_b::floats + p.col);
    const char *at_a, *at_b; /* the thread's operands of the step that is read */
    int from = 0, odd = 0;
    /* until the step in the stage at `from` is there, for all threads */
    auto await_step = [&]() {
        ree_copy_wait<STAGES - 2>();
        if (WIDENED) {
            copy_b.widen(reinterpret_cast<f32 *>(stages + RING_BYTES + odd), stages + from + operand_a::stage_bytes,
                         thread);
            at_b = first_b + odd;
            odd ^= WIDENED_BYTES;
        } else {
            at_b = first_b + from;
        }
        at_a = first_a + from;
        from = from + STAGE_BYTES == RING_BYTES ? 0 : from + STAGE_BYTES;
        __syncthreads();
    };

    f32 acc[TM][TN], read_a[2][TM], read_b[2][TN];
    auto read = [&](int buffer, int k) {
#pragma unroll
        for (int i = 0; i < TM; i += 4)
            *reinterpret_cast<float4 *>(&read_a[buffer][i]) =
                *reinterpret_cast<const float4 *>(at_a + 4 * (k * operand_a::pitch + i * LANE_ROWS));
#pragma unroll
        for (int j = 0; j < TN; j += 4)
            *reinterpret_cast<float4 *>(&read_b[buffer][j]) =
                *reinterpret_cast<const float4 *>(at_b + 4 * (k * operand_b::pitch + j * LANE_COLS));
    };
    auto clear = [&]() {
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++)
                acc[i][j] = 0.0f;
    };

    clear();
    if (!REE_MATMUL_SHORT && !REE_MATMUL_SPLIT && group == 0) /* each thread its own, as it adds to them later */
        add_to_totals(totals, p, acc, true);
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++)
        copy_step(true, true);
    if (CARRIED) {
        await_step();
        read(0, 0);
    }

#pragma unroll 1
    for (int round = rounds.first; round < rounds.end; round++) {
        const int round_k = ree_min(REE_CHUNK, ree_difference(a.k, static_cast<i64>(round) * ROUND));
#pragma unroll 1
        for (int step = (round_k + STEP - 1) / STEP; step > 0; step--) {
            if (!CARRIED) {
                await_step();
                copy_step(true, true);
                read(0, 0);
            }
#pragma unroll
            for (int k = 0; k < STEP; k++) {
                if (CARRIED && k == STEP - 1)
                    await_step();
                if (CARRIED || k < STEP - 1)
                    read((k + 1) % 2, (k + 1) % STEP);
                if (CARRIED && k == 0)
                    copy_step(true, false);
                if (CARRIED && k == STEP / 2)
                    copy_step(false, true);
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TN; j++)
                        acc[i][j] = f32_fma(read_a[k % 2][i], read_b[k % 2][j], acc[i][j]);
            }
        }
        if (REE_MATMUL_SHORT)
            break;
        if (REE_MATMUL_SPLIT) {
            const int self = static_cast<int>(again(threadIdx.x)), group = self / GROUP_THREADS;
            const place p(self % GROUP_THREADS);
            store_sums(a, tile_of(a, again(blockIdx.x)), static_cast<i64>(round) * GROUPS + group, p, acc);
        } else if (GROUPS == 1) {
            add_to_totals(totals, p, acc, false);
        } else {
            const int self = static_cast<int>(again(threadIdx.x)), group = self / GROUP_THREADS;
            const place p(self % GROUP_THREADS);
#pragma unroll 1
            for (int turn = 0; turn < GROUPS; turn++) {
                if (turn == group)
                    add_to_totals(totals, p, acc, false);
                __syncthreads();
            }
        }
        clear();
    }
    ree_copy_wait<0>(); /* for steps beyond the last */
    if (REE_MATMUL_SPLIT)
        return;
    if (REE_MATMUL_SHORT) {
        __syncthreads(); /* all stages were read */
        add_to_totals(totals, p, acc, true);
    }
    __syncthreads();
    store_tile(a, t, totals);
}
