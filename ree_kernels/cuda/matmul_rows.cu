/* C = A B for few rows of A and a B in panels: as fast as B can be read.
 *
 * A block has PANELS panels of B, 8 columns each, and works on CHUNKS chunks of 256 k of them at once. What it reads
 * of one panel and one chunk, a unit, lies in one piece. Stages of STEP k of each unit are copied into shared memory
 * STAGES - 1 ahead, which is what hides the memory's latency: the bytes under way do not depend on the number of
 * threads. A thread runs the chains of all ROWS rows for one column of one unit, or for two of bf16. When a round of
 * chunks is done, their sums are added in order; with REE_MATMUL_SPLIT blocks share out the rounds, and
 * ree_chunk_sums adds the chunk sums.
 *
 * Macros: REE_MATMUL_ROWS: rows that are computed, of which a.m are stored; _PANELS, _CHUNKS, _STEP (a multiple of 8),
 * _STAGES; _BLOCKS: that a multiprocessor should hold; _BF16: B is; _A16: rows of A lie side by side and are aligned
 * to 16 bytes; _SPLIT.
 */
#include "ree.cuh"
#include "epilogue.cuh"
#include "matmul.cuh"

struct ree_matmul_rows_args {
    const f32 *a;
    const void *b;
    f32 *sums; /* split: [chunk][m][n] */
    i64 m, n, k;
    i64 a_row, a_k; /* in elements */
    i64 splits;     /* how many blocks share the rounds of their columns */
    ree_epilogue_args e;
};

#define ROWS REE_MATMUL_ROWS
#define STEP REE_MATMUL_STEP
#define STAGES REE_MATMUL_STAGES

enum {
    PANELS = REE_MATMUL_PANELS,
    CHUNKS = REE_MATMUL_CHUNKS,
    UNITS = PANELS * CHUNKS,
    COLS = PANELS * REE_PANEL,
    ITEM_BYTES = REE_MATMUL_BF16 ? 2 : 4,
    WIDTH = 4 / ITEM_BYTES, /* columns of a thread */
    UNIT_THREADS = REE_PANEL / WIDTH,
    THREADS = UNITS * UNIT_THREADS,
    ROW_BYTES = REE_PANEL * ITEM_BYTES,         /* of a unit, for one k */
    UNIT_BYTES = STEP * ROW_BYTES + ROW_BYTES,  /* the units that a warp reads lie in different banks */
    UNIT_COPIES = STEP * ROW_BYTES / 16,
    B_COPIES = UNITS * UNIT_COPIES / THREADS,
    A_PITCH = STEP + 4, /* floats of a row's chunk */
    A_WIDTH = REE_MATMUL_A16 ? 4 : 1,
    A_PARTS = CHUNKS * STEP / A_WIDTH, /* of each row */
    A_COPIES = (A_PARTS + THREADS - 1) / THREADS,
    STAGE_BYTES = UNITS * UNIT_BYTES + ROWS * CHUNKS * A_PITCH * 4,
    RING_BYTES = STAGES * STAGE_BYTES,
    ROUND = CHUNKS * REE_CHUNK,
    /* no more at once than there are registers for */
    K_UNROLLED = ROWS <= 4 ? STEP / 4 : 2,
    ROWS_UNROLLED = A_COPIES <= 2 ? 4 : 1
};

/* The share of a thread in copying stages: parts `thread`, `thread + THREADS`, ... of B and of each row of A. */
struct copies {
    u32 from_b[B_COPIES], from_a[A_COPIES]; /* bytes from the stage's first k on */

    static REE_INLINE int k_of_b(int part)
    {
        return part / UNIT_COPIES / PANELS * REE_CHUNK + part % UNIT_COPIES * 16 / ROW_BYTES;
    }
    static REE_INLINE int k_of_a(int part) { return part * A_WIDTH / STEP * REE_CHUNK + part * A_WIDTH % STEP; }

    __device__ copies(const ree_matmul_rows_args &a, int thread, int panels_left)
    {
#pragma unroll
        for (int i = 0; i < B_COPIES; i++) {
            const int part = thread + i * THREADS, unit = part / UNIT_COPIES;
            const u32 panel = static_cast<u32>(ree_min(unit % PANELS, panels_left - 1));
            from_b[i] = panel * static_cast<u32>(a.k) * ROW_BYTES +
                        static_cast<u32>(unit / PANELS * REE_CHUNK * ROW_BYTES + part % UNIT_COPIES * 16);
        }
#pragma unroll
        for (int i = 0; i < A_COPIES; i++)
            from_a[i] = 4 * static_cast<u32>(k_of_a(thread + i * THREADS)) * static_cast<u32>(a.a_k);
    }

    /* all: every k of the stage is there */
    template <bool all>
    REE_INLINE void copy(const ree_matmul_rows_args &args, char *stage, int thread, const char *b, const char *a,
                         int left) const
    {
#pragma unroll
        for (int i = 0; i < B_COPIES; i++) {
            const int part = thread + i * THREADS;
            char *const to = stage + part / UNIT_COPIES * UNIT_BYTES + part % UNIT_COPIES * 16;
            ree_copy_async16(to, b + from_b[i], all || k_of_b(part) < left);
        }
#pragma unroll ROWS_UNROLLED
        for (int row = 0; row < ROWS; row++) {
            char *const stage_a = stage + UNITS * UNIT_BYTES + row * (CHUNKS * A_PITCH * 4);
            const char *const from = a + ree_min(row, static_cast<int>(args.m) - 1) * args.a_row * 4;
#pragma unroll
            for (int i = 0; i < A_COPIES; i++) {
                const int part = thread + i * THREADS, place = part * A_WIDTH;
                if (A_PARTS % THREADS != 0 && part >= A_PARTS)
                    continue;
                char *const to = stage_a + 4 * (place / STEP * A_PITCH + place % STEP);
                if (REE_MATMUL_A16)
                    ree_copy_async16(to, from + from_a[i], all || k_of_a(part) < left);
                else
                    ree_copy_async4(to, from + from_a[i], all || k_of_a(part) < left);
            }
        }
        ree_copy_commit();
    }
};

/* The chains of a thread over a stage: at_b: its columns, at_a: the first row of its chunk. */
REE_INLINE void run_step(f32 (&acc)[ROWS][WIDTH], const char *at_b, const f32 *at_a)
{
#pragma unroll K_UNROLLED
    for (int k = 0; k < STEP; k += 4) {
        f32 row[ROWS][4];
#pragma unroll
        for (int m = 0; m < ROWS; m++)
            *reinterpret_cast<float4 *>(row[m]) = *reinterpret_cast<const float4 *>(at_a + m * CHUNKS * A_PITCH + k);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 bits = *reinterpret_cast<const u32 *>(at_b + (k + i) * ROW_BYTES);
            f32 b[2] = {f32_of_bits(bits), 0.0f};
            if (REE_MATMUL_BF16)
                b[0] = f32_of_bits(bits << 16), b[1] = f32_of_bits(bits & 0xffff0000u);
#pragma unroll
            for (int m = 0; m < ROWS; m++)
#pragma unroll
                for (int j = 0; j < WIDTH; j++)
                    acc[m][j] = f32_fma(row[m][i], b[j], acc[m][j]);
        }
    }
}

#ifdef REE_EMULATED
#define BOUNDS THREADS
#else
#define BOUNDS THREADS, REE_MATMUL_BLOCKS
#endif

REE_KERNEL(ree_matmul_rows, ree_matmul_rows_args, BOUNDS)
{
    const int thread = static_cast<int>(threadIdx.x), unit = thread / UNIT_THREADS, chunk = unit / PANELS;
    const int column = unit % PANELS * REE_PANEL + thread % UNIT_THREADS * WIDTH;
    const u32 blocks = static_cast<u32>((a.n + COLS - 1) / COLS);
    const i64 first_col = static_cast<i64>(blockIdx.x % blocks) * COLS;
    const u32 split = blockIdx.x / blocks;
    char *const stages = ree_shared();
    f32 *const sums = reinterpret_cast<f32 *>(stages + RING_BYTES); /* [chunk][row][column] */
    f32 *const totals = sums + CHUNKS * ROWS * COLS;                /* [row][column] */

    ree_rounds rounds = {0, (static_cast<int>(a.k) + ROUND - 1) / ROUND};
    if (REE_MATMUL_SPLIT)
        rounds = ree_shared_rounds(rounds.end, split, a.splits);
    const i64 first_k = static_cast<i64>(rounds.first) * ROUND;

    const copies share(a, thread, ree_difference((a.n + REE_PANEL - 1) / REE_PANEL, first_col / REE_PANEL));
    const char *from_a = reinterpret_cast<const char *>(a.a + first_k * a.a_k);
    const char *from_b = static_cast<const char *>(a.b) + (first_col * a.k + first_k * REE_PANEL) * ITEM_BYTES;
    int left = ree_difference(a.k, first_k), to = 0, round_left = REE_CHUNK / STEP;
    auto copy_step = [&]() {
        if (left >= ROUND)
            share.copy<true>(a, stages + to, thread, from_b, from_a, left);
        else
            share.copy<false>(a, stages + to, thread, from_b, from_a, left);
        to = to + STAGE_BYTES == RING_BYTES ? 0 : to + STAGE_BYTES;
        const int on = --round_left == 0 ? STEP + (CHUNKS - 1) * REE_CHUNK : STEP;
        round_left = round_left == 0 ? REE_CHUNK / STEP : round_left;
        from_a += 4 * on * a.a_k;
        from_b += on * ROW_BYTES;
        left -= on;
    };

    f32 acc[ROWS][WIDTH];
    auto clear = [&]() {
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int j = 0; j < WIDTH; j++)
                acc[m][j] = 0.0f;
    };
    for (int i = thread; i < ROWS * COLS; i += THREADS)
        totals[i] = 0.0f; /* by the thread that adds to it */
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++)
        copy_step();
    int from = 0;
    const char *const first_b = stages + unit * UNIT_BYTES + thread % UNIT_THREADS * 4;
    const char *const first_a = stages + UNITS * UNIT_BYTES + chunk * A_PITCH * 4;

#pragma unroll 1
    for (int round = rounds.first; round < rounds.end; round++) {
        clear();
        const int round_k = ree_min(REE_CHUNK, ree_difference(a.k, static_cast<i64>(round) * ROUND));
#pragma unroll 1
        for (int step = (round_k + STEP - 1) / STEP; step > 0; step--) {
            ree_copy_wait<STAGES - 2>();
            __syncthreads(); /* the stage is there, and the one before it was read */
            copy_step();
            run_step(acc, first_b + from, reinterpret_cast<const f32 *>(first_a + from));
            from = from + STAGE_BYTES == RING_BYTES ? 0 : from + STAGE_BYTES;
        }
        if (REE_MATMUL_SPLIT) {
            const i64 number = static_cast<i64>(round) * CHUNKS + chunk;
#pragma unroll
            for (int m = 0; m < ROWS; m++)
#pragma unroll
                for (int j = 0; j < WIDTH; j++)
                    if (number * REE_CHUNK < a.k && m < a.m && first_col + column + j < a.n)
                        a.sums[(number * a.m + m) * a.n + first_col + column + j] = acc[m][j];
            continue;
        }
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int j = 0; j < WIDTH; j++)
                sums[(chunk * ROWS + m) * COLS + column + j] = acc[m][j];
        __syncthreads();
        for (int i = thread; i < ROWS * COLS; i += THREADS) {
            f32 total = totals[i];
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
                total = f32_add(total, sums[c * ROWS * COLS + i]);
            totals[i] = total;
        }
    }
    ree_copy_wait<0>(); /* for steps beyond the last */
    if (REE_MATMUL_SPLIT)
        return;
    for (int i = thread; i < ROWS * COLS; i += THREADS) {
        const int row = i / COLS;
        const i64 col = first_col + i % COLS;
        if (row < a.m && col < a.n)
            *ree_epilogue_at(a.e, row, col) = ree_epilogue(a.e, row, col, totals[i]);
    }
}
