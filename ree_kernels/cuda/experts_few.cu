/* Rows times one of several matrices where rows are few: a block takes one row and some columns of its expert's matrix.
 *
 * The matrix's way from memory is the bound: lanes walk along columns, 4 to 16 bytes each, warps share out the chunks
 * of k, and loads of many k's are in flight before the first is used. Chunk sums meet in shared memory.
 */
#include "ree.cuh"

#ifndef REE_EXPERTS_COLUMNS
#define REE_EXPERTS_COLUMNS 4 /* of a lane: 1, 2 or 4; with bfloat16 2, 4 or 8 */
#endif
#ifndef REE_EXPERTS_AHEAD
#define REE_EXPERTS_AHEAD 16 /* k's whose loads are in flight */
#endif

#ifndef REE_EXPERTS_BLOCKS
#define REE_EXPERTS_BLOCKS 2
#endif

#ifdef REE_EXPERTS_BF16
typedef u16 experts_w;
#else
typedef f32 experts_w;
#endif

enum {
    COLUMNS = REE_EXPERTS_COLUMNS,
    BLOCK_COLUMNS = COLUMNS * REE_WARP,
    WORDS = COLUMNS * static_cast<int>(sizeof(experts_w)) / 4,
    WARPS_MAX = 8
};

/* Dynamic shared memory: the chunk sums, [chunks][BLOCK_COLUMNS]. */
struct ree_experts_few_args {
    const f32 *x;
    const i64 *expert;
    const void *w; /* of each expert [k, w_row] */
    f32 *out;
    i64 *status;
    i64 x_row, x_k, expert_step, n, k, w_row, experts;
};

struct alignas(4 * WORDS) experts_words {
    u32 word[WORDS];
};

REE_INLINE f32 experts_column(const experts_words &w, int column)
{
#ifdef REE_EXPERTS_BF16
    return f32_of_bits(column % 2 == 0 ? w.word[column / 2] << 16 : w.word[column / 2] & 0xffff0000u);
#else
    return f32_of_bits(w.word[column]);
#endif
}

/* The chains of the lane's columns over `count` k's. x: in shared memory; w: at the first k and the lane's columns. */
REE_INLINE void experts_chunk(f32 (&chain)[COLUMNS], const f32 *x, const experts_w *w, i64 w_row, int count)
{
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
        chain[c] = 0.0f;
    int k = 0;
#pragma unroll 1
    for (; k + REE_EXPERTS_AHEAD <= count; k += REE_EXPERTS_AHEAD) {
        experts_words words[REE_EXPERTS_AHEAD];
#pragma unroll
        for (int i = 0; i < REE_EXPERTS_AHEAD; i++)
            words[i] = *reinterpret_cast<const experts_words *>(w + (k + i) * w_row);
#pragma unroll
        for (int i = 0; i < REE_EXPERTS_AHEAD; i++)
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
                chain[c] = f32_fma(x[k + i], experts_column(words[i], c), chain[c]);
    }
    for (; k < count; k++) {
        const experts_words words = *reinterpret_cast<const experts_words *>(w + k * w_row);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            chain[c] = f32_fma(x[k], experts_column(words, c), chain[c]);
    }
}

/* Two blocks of a multiprocessor are enough: registers are for loads that are in flight. */
#ifdef REE_EMULATED
#define BOUNDS (WARPS_MAX * REE_WARP)
#else
#define BOUNDS WARPS_MAX *REE_WARP, REE_EXPERTS_BLOCKS
#endif

REE_KERNEL(ree_experts_few, ree_experts_few_args, BOUNDS)
{
    __shared__ f32 x[WARPS_MAX][REE_CHUNK];
    f32 *const sums = reinterpret_cast<f32 *>(ree_shared());
    const int warp = static_cast<int>(threadIdx.x) / REE_WARP, lane = static_cast<int>(threadIdx.x) % REE_WARP;
    const int warps = static_cast<int>(blockDim.x) / REE_WARP;
    const i64 row = blockIdx.y, first = static_cast<i64>(blockIdx.x) * BLOCK_COLUMNS, own = first + lane * COLUMNS;
    const i64 expert = a.expert[row * a.expert_step], chunks = (a.k + REE_CHUNK - 1) / REE_CHUNK;
    if (static_cast<u64>(expert) >= static_cast<u64>(a.experts)) {
        *reinterpret_cast<volatile i64 *>(a.status) = 1;
        return;
    }
    const experts_w *const w = static_cast<const experts_w *>(a.w) + expert * a.k * a.w_row + own;
    for (i64 chunk = warp; chunk < chunks; chunk += warps) {
        const i64 k = chunk * REE_CHUNK;
        const int count = static_cast<int>(a.k - k < REE_CHUNK ? a.k - k : REE_CHUNK);
        for (int i = lane; i < count; i += REE_WARP)
            x[warp][i] = a.x[row * a.x_row + (k + i) * a.x_k];
        __syncwarp();
        if (own < a.w_row) {
            f32 chain[COLUMNS];
            experts_chunk(chain, x[warp], w + k * a.w_row, a.w_row, count);
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
                sums[chunk * BLOCK_COLUMNS + lane * COLUMNS + c] = chain[c];
        }
        __syncwarp();
    }
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < BLOCK_COLUMNS; c += static_cast<int>(blockDim.x)) {
        if (first + c >= a.n)
            continue;
        f32 total = 0.0f;
        for (i64 chunk = 0; chunk < chunks; chunk++)
            total = f32_add(total, sums[chunk * BLOCK_COLUMNS + c]);
        a.out[row * a.n + first + c] = f32_canonical(total);
    }
}
