/* Attention of many rows: a block takes a tile of rows of one head of keys over all keys that these see.
 *
 * Two passes, since the largest score of a row must be known before its first weight: no rescaling, which would round
 * otherwise than the definition. The first pass computes scores. It keeps them in scratch memory of the block
 * (REE_KEPT), where they stay in L2 or stream beside the products, 8 bytes for 2 d FMAs; or drops them, to be computed
 * again, where all rows' scores would not fit. The second turns them into weights in shared memory, sums those in the
 * 16 lanes of `sum`, and multiplies by values: a chain of FMAs over each chunk of 256 keys, chunk sums added in
 * ascending order.
 *
 * Both products are tiles of 8 x 8 or 8 x 4 results a thread. A warp is 4 x 8 threads, in an order in which lanes 2
 * apart read the same row and lanes 1 apart the same columns: shared memory then serves 16 lanes' float4 at once.
 *
 * What a row does not see is left out of its folds. In a tile that some row sees in part, a weight that is left out is
 * 0 and its product is skipped, for a value may be infinite.
 */
#include "ree.cuh"
#include "values.cuh"
#include "folds.cuh"
#include "attention.cuh"

#ifndef REE_WARPS
#define REE_WARPS 4   /* of a block */
#define REE_WARPS_N 2 /* of these, those along keys and along columns of values; the others are along rows */
#endif
#ifndef REE_STEP
#define REE_STEP 32 /* keys that values are multiplied by between barriers: 16 or 32 */
#endif
#ifndef REE_KEPT
#define REE_KEPT 1
#endif
#ifndef REE_BLOCKS
#define REE_BLOCKS 4 /* of an SM at a time, which limits the registers of a thread */
#endif

enum {
    THREADS = REE_WARP * REE_WARPS,
    WARPS_N = REE_WARPS_N,
    WARPS_M = REE_WARPS / WARPS_N,
    ROWS = 32 * WARPS_M,
    KEYS = 64 * WARPS_N,                            /* of a tile of scores */
    BLOCK = 32,                                     /* components of keys that are copied together: a line */
    BLOCKS = (HEAD - 1) / BLOCK + 1,
    VALUE_FOURS = (VALUE - 1) / (32 * WARPS_N) + 1, /* float4 of a thread's columns */
    COLUMNS = 32 * WARPS_N * VALUE_FOURS,           /* of values, padded */
    STEP = REE_STEP,
    WEIGHT_ROW = (REE_KEPT ? STEP : KEYS) + 4,      /* floats: an odd number of 16 bytes */
    LANE_ROWS = 4 / WARPS_N,                        /* rows whose weights a thread sums, in 4 lanes each, */
    ROWS_APART = 8 * REE_WARPS                      /* and how far apart these are */
};
static_assert(VALUE_FOURS <= 2 && REE_CHUNK % KEYS == 0 && KEYS % STEP == 0 && ROWS <= THREADS, "a tile of attention");

struct ree_attention_args {
    const f32 *q, *k, *v;
    f32 *out;
    i64 q_item, q_head, q_token, k_item, k_head, k_token, v_item, v_head, v_token, out_item, out_head, out_token;
    const i64 *position, *slot;
    i64 items, k_heads, group, tokens, keys, causal, window;
    i64 stretch;        /* tokens that are cut into sequences, then into tiles */
    i64 tiles;          /* of a stretch */
    i64 rows_min;       /* over a cache: fewer rows of a sequence in a stretch are left to the other kernels */
    f32 *scores, *sums; /* of each block ROWS x score_row, and ROWS x chunks: sums of the chunks' weights */
    i64 score_row, chunks;
    ree_score_args e;
};

#include "attention_scores.cuh"
#include "attention_values.cuh"

/* -- tiles ---------------------------------------------------------------------------------------------- */
REE_INLINE void place_rows(const ree_attention_args &a)
{
    tile_facts &facts = facts_of_block();
    const int row = static_cast<int>(threadIdx.x);
    if (row < ROWS) {
        const u32 group = static_cast<u32>(a.group);
        /* rows that are not there are copies of the first */
        const u32 number = static_cast<u32>(facts.first_row) + (row < facts.count ? row : 0);
        const i64 token = facts.first_token + number / group, head = facts.k_head * a.group + number % group;
        const i64 batch = a.slot ? 0 : facts.item;
        const attention_keys keys = attention_keys_of(a, token);
        facts.q[row] = batch * a.q_item + head * a.q_head + token * a.q_token;
        facts.out[row] = batch * a.out_item + head * a.out_head + token * a.out_token;
        facts.token[row] = static_cast<int>(token);
        facts.head[row] = static_cast<int>(head);
        facts.start[row] = keys.start;
        facts.ends[row] = keys.end;
        if (row == 0)
            facts.first = keys.start;
        if (row == facts.count - 1)
            facts.end = keys.end;
    }
    if (row == 0) {
        facts.k = a.k + facts.item * a.k_item + facts.k_head * a.k_head;
        facts.v = a.v + facts.item * a.v_item + facts.k_head * a.v_head;
        facts.kept = a.scores + static_cast<i64>(blockIdx.x) * (ROWS * a.score_row);
        facts.sums = a.sums + static_cast<i64>(blockIdx.x) * (ROWS * a.chunks);
        facts.k_is_aligned = attention_is_aligned(a.k, HEAD, a.k_item, a.k_head, a.k_token);
        facts.v_is_aligned = attention_is_aligned(a.v, VALUE, a.v_item, a.v_head, a.v_token);
    }
}

REE_INLINE void fetch_queries(const ree_attention_args &a)
{
    const tile_work w;
    const bool is_aligned = attention_is_aligned(a.q, HEAD, a.q_item, a.q_head, a.q_token);
#pragma unroll 1
    for (int n = static_cast<int>(threadIdx.x); n < ROWS * HEAD_FOURS; n += THREADS) {
        const int row = n / HEAD_FOURS, d = n % HEAD_FOURS * 4;
        attention_copy4(w.scores().q + row * HEAD_ROW + d, a.q + w.facts().q[row] + d, HEAD - d, is_aligned);
    }
}

/* The sums of the rows' weights. */
REE_PASS void sum_weights(const ree_attention_args &a)
{
    const tile_work w;
    const int row = static_cast<int>(threadIdx.x), first = w.facts().first / REE_CHUNK;
    const f32 *const sums = w.facts().sums + row * a.chunks;
    __syncthreads();
    if (row < ROWS)
        w.facts().sum[row] = ree_sum<f32>((w.facts().end + REE_CHUNK - 1) / REE_CHUNK,
                                         [&](i64 chunk) -> f32 { return chunk < first ? 0.0f : sums[chunk]; });
    __syncthreads();
}

REE_PASS void store_results(const ree_attention_args &a)
{
    const tile_work w;
    const bool is_aligned = attention_is_aligned(a.out, VALUE, a.out_item, a.out_head, a.out_token);
#pragma unroll 1
    for (int i = 0; i < 8; i++) {
        const int row = w.own.row + i * 4;
        if (row >= w.facts().count)
            continue;
        const f32 sum = w.facts().sum[row];
        f32 *const to = a.out + w.facts().out[row];
#pragma unroll 1
        for (int f = 0; f < VALUE_FOURS; f++) {
            const float4 total = attention_load4(totals_of(w, i, f));
            const int column = w.own.value + f * 32;
            const float4 result = make_float4(attention_result(total.x, sum), attention_result(total.y, sum),
                                              attention_result(total.z, sum), attention_result(total.w, sum));
            if (is_aligned && column < VALUE)
                attention_store4(to + column, result);
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (!is_aligned && column + c < VALUE)
                    to[column + c] = attention_part(result, c);
        }
    }
}

/* Which keys each warp's rows see: a row's start and end are not before those of the row before it. */
REE_INLINE void find_seen(void)
{
    tile_facts &facts = facts_of_block();
    const int warp_row = static_cast<int>(threadIdx.x), first = warp_row * 32;
    if (warp_row >= WARPS_M)
        return;
    const int last = first + 31 < facts.count ? first + 31 : facts.count - 1;
    const bool exists = first < facts.count;
    facts.any[warp_row] = {exists ? facts.start[first] : 0, exists ? facts.ends[last] : 0};
    facts.all[warp_row] = {exists ? facts.start[last] : 0, exists ? facts.ends[first] : 0};
}

REE_PASS void begin_tile(const ree_attention_args &a)
{
    place_rows(a);
    __syncthreads();
    find_seen();
    fetch_queries(a);
}

/* Go on to the block's next part of a stretch of tokens: false if there is none. Of `parts` of each of `heads` those of
 * causal rows that see most come first, and every other turn goes in the opposite order: so all blocks have about as
 * much to do. */
REE_PASS bool next_part(const ree_attention_args &a)
{
    tile_facts &facts = facts_of_block();
    const u32 heads = static_cast<u32>(a.items * a.k_heads), tiles = static_cast<u32>(a.tiles), turn = facts.turn;
    const u32 parts = static_cast<u32>((a.tokens + a.stretch - 1) / a.stretch) * tiles;
    const u32 number = turn * gridDim.x + (turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) {
        const u32 part = number < heads * parts ? parts - 1 - number / heads : 0;
        facts.turn = turn + 1;
        facts.place = static_cast<int>(number % heads);
        facts.part = static_cast<int>(part % tiles);
        facts.next_token = static_cast<int>(number < heads * parts ? part / tiles * a.stretch : a.tokens);
    }
    __syncthreads();
    return turn * gridDim.x < heads * parts;
}

/* Go on to the tile of the part's next sequence; count is 0 if there is none that this kernel computes. */
REE_PASS void next_tile(const ree_attention_args &a)
{
    tile_facts &facts = facts_of_block();
    const int token = facts.next_token, stretch = static_cast<int>(a.stretch), k_heads = static_cast<int>(a.k_heads);
    int count = static_cast<int>(attention_min(stretch - token % stretch, a.tokens - token));
    i64 item = facts.place / k_heads;
    if (a.slot) {
        item = a.slot[token];
        count = __syncthreads_count(static_cast<int>(threadIdx.x) < count && a.slot[token + threadIdx.x] == item);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const i64 first = static_cast<i64>(facts.part) * ROWS, left = count * a.group - first;
        const bool is_ours = left > 0 && (!a.slot || attention_is_tiled(item, count, a.group, a.rows_min));
        facts.item = item;
        facts.k_head = facts.place % k_heads;
        facts.first_token = token;
        facts.first_row = first;
        facts.count = is_ours ? static_cast<int>(attention_min(left, ROWS)) : 0;
        facts.next_token = (token + count) % stretch ? token + count : static_cast<int>(a.tokens);
    }
    __syncthreads();
}

/* Blocks take turns at parts: in each, all sequences of a stretch of tokens. */
REE_KERNEL(ree_attention, ree_attention_args, REE_BOUNDS(THREADS, REE_BLOCKS))
{
    tile_facts &facts = facts_of_block();
    if (threadIdx.x == 0)
        facts.turn = 0;
    __syncthreads();
    while (next_part(a))
        while (facts.next_token < a.tokens) {
            next_tile(a);
            if (facts.count) {
                begin_tile(a);
                find_largest(a);
                if (REE_KEPT)
                    mix_kept(a);
                else
                    mix_again(a);
                sum_weights(a);
                store_results(a);
            }
            __syncthreads();
        }
}
