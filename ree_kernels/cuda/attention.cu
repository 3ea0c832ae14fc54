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

#ifndef REE_WARPS_N
#define REE_WARPS_N 2 /* of 4 warps, those along keys and along columns of values; the others are along rows */
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
    THREADS = 128,
    WARPS_N = REE_WARPS_N,
    ROWS = 32 * (4 / WARPS_N),
    KEYS = 64 * WARPS_N,                            /* of a tile of scores */
    BLOCK = 32,                                     /* components of keys that are copied together: a line */
    BLOCKS = (HEAD - 1) / BLOCK + 1,
    VALUE_FOURS = (VALUE - 1) / (32 * WARPS_N) + 1, /* float4 of a thread's columns */
    COLUMNS = 32 * WARPS_N * VALUE_FOURS,           /* of values, padded */
    STEP = REE_STEP,
    WEIGHT_ROW = (REE_KEPT ? STEP : KEYS) + 4,      /* floats: an odd number of 16 bytes */
    LANE_ROWS = ROWS / 32                           /* rows whose weights a thread sums, in 4 lanes each */
};
static_assert(VALUE_FOURS <= 2 && REE_CHUNK % KEYS == 0 && KEYS % STEP == 0, "a tile of attention");

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

/* Shared memory. */
struct score_memory {
    f32 q[ROWS * HEAD_ROW];
    f32 k[2][KEYS * BLOCK]; /* key by key, the float4 of each exchanged so that lanes, 4 keys apart, read all banks */
    f32 largest[8 * THREADS]; /* of each thread's rows; then, by warps along keys, of all rows */
};
struct value_memory {
    f32 weights[REE_KEPT ? 2 : 1][ROWS * WEIGHT_ROW];
    f32 v[2][STEP * COLUMNS];
    f32 totals[ROWS * COLUMNS]; /* float4 by float4, each of all threads */
};
/* What is known of a tile; no thread has the registers to remember it. */
struct alignas(16) tile_facts {
    const f32 *k, *v; /* of the sequence and head */
    f32 *kept, *sums; /* of the block */
    /* which rows: [first_row, first_row + count) of those of one sequence and head of keys from first_token on */
    i64 item, k_head, first_token, first_row;
    int count;
    int first, end; /* keys that any row sees */
    int k_is_aligned, v_is_aligned;
    /* where the block is: which of its turns, of that the part and the head of keys, the token after the tile */
    u32 turn;
    int place, part, next_token;
    /* of each row: where it begins, in floats; which one it is; the keys that it sees */
    i64 q[ROWS], out[ROWS];
    int token[ROWS], head[ROWS], start[ROWS], ends[ROWS];
    f32 shift[ROWS], sum[ROWS];
    /* of each warp's rows: which keys any sees, which all see */
    attention_keys any[4 / WARPS_N], all[4 / WARPS_N];
};
enum {
    SCORES_AT = sizeof(tile_facts),
    VALUES_AT = SCORES_AT + (REE_KEPT ? 0 : sizeof(score_memory)), /* the scores kept are all there before values are */
    SCORES_END = SCORES_AT + sizeof(score_memory),
    VALUES_END = VALUES_AT + sizeof(value_memory)
};
static_assert((SCORES_END > VALUES_END ? SCORES_END : VALUES_END) == REE_SHARED_BYTES, "shared memory of a tile");

REE_INLINE tile_facts &facts_of_block(void) { return *reinterpret_cast<tile_facts *>(ree_shared()); }

/* The thread's part of products: rows row + 4 i, columns in fours, 32 apart. */
struct thread_place {
    int warp_row, warp_key; /* the first ones of its warp's 32 x 64 scores */
    int row, column;        /* column: which of 8 lanes along columns */
    int key, value;         /* its first key, its first column of values */

    __device__ thread_place()
    {
        const int warp = static_cast<int>(threadIdx.x / REE_WARP), lane = static_cast<int>(threadIdx.x % REE_WARP);
        warp_row = warp / WARPS_N * 32;
        warp_key = warp % WARPS_N * 64;
        row = warp_row + (lane & 1) + (lane >> 4) * 2;
        column = lane >> 1 & 7;
        key = warp_key + column * 4;
        value = warp % WARPS_N * (32 * VALUE_FOURS) + column * 4;
    }
};

/* What a thread works on. */
struct tile_work {
    thread_place own;

    __device__ tile_facts &facts() const { return facts_of_block(); }
    __device__ score_memory &scores() const { return *reinterpret_cast<score_memory *>(ree_shared() + SCORES_AT); }
    __device__ value_memory &values() const { return *reinterpret_cast<value_memory *>(ree_shared() + VALUES_AT); }

    /* Whether any, whether all of the warp's rows see keys [key, key + count). */
    __device__ bool any_sees(int key, int count) const
    {
        const attention_keys keys = facts().any[own.warp_row / 32];
        return key < keys.end && key + count > keys.start;
    }
    __device__ bool all_see(int key, int count) const
    {
        const attention_keys keys = facts().all[own.warp_row / 32];
        return key >= keys.start && key + count <= keys.end;
    }
};

/* -- scores --------------------------------------------------------------------------------------------- */
/* Blocks of keys on their way to shared memory: of the tile from `key` on, then of the next one. */
struct key_blocks {
    int key, block;

    /* Begin to copy the next block to a buffer, if there is one. */
    __device__ void fetch(const ree_attention_args &a, const tile_work &w, int buffer)
    {
        const int end = w.facts().end;
        if (key < end) {
            const int four = static_cast<int>(threadIdx.x % 8), at = static_cast<int>(threadIdx.x / 8);
            const int d = block * BLOCK + four * 4;
            f32 *const to = w.scores().k[buffer & 1];
            attention_copy_rows<KEYS * 8 / THREADS>(
                w.facts().k + static_cast<i64>(key + at) * a.k_token + d, (THREADS / 8) * a.k_token, end - key - at,
                THREADS / 8, HEAD - d, w.facts().k_is_aligned, [&](int n) -> f32 * {
                    const int row = at + n * (THREADS / 8);
                    return to + row * BLOCK + (four ^ (row >> 2 & 7)) * 4;
                });
            if (++block == BLOCKS) {
                block = 0;
                key += KEYS;
            }
        }
        ree_copy_commit();
    }
};

typedef f32 score_tile[8][8];

/* Go on with the chains over a block of components. q, k: from the thread's first row and key on. */
REE_INLINE void multiply_keys(score_tile &score, const f32 *q, const f32 *k, int fours, int column)
{
#pragma unroll 2
    for (int c = 0; c < fours; c++) {
        float4 key[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            key[j] = attention_load4(k + (j / 4 * 32 + j % 4) * BLOCK + (c ^ column) * 4);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float4 row = attention_load4(q + i * 4 * HEAD_ROW + c * 4);
#pragma unroll
            for (int part = 0; part < 4; part++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    score[i][j] = f32_fma(attention_part(row, part), attention_part(key[j], part), score[i][j]);
        }
    }
}

/* From chains to scores, -inf for keys that a row does not see. key0: the tile's first. */
template <bool is_whole>
REE_INLINE void finish_scores(const ree_attention_args &a, const tile_work &w, int key0, score_tile &score)
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = w.own.row + i * 4, start = w.facts().start[row], end = w.facts().ends[row];
        const i64 head = w.facts().head[row], token = w.facts().token[row];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int key = key0 + w.own.key + j / 4 * 32 + j % 4;
            const f32 dot = f32_add(0.0f, score[i][j]);
            score[i][j] = REE_MINUS_INFINITY;
            if (is_whole || (key >= start && key < end))
                score[i][j] = ree_score(a.e, w.facts().item, head, token, key, dot);
        }
    }
}

/* The scores of the tile of keys from key0 on, whose first block is on its way. stage: blocks that were multiplied. */
REE_INLINE void score_keys(const ree_attention_args &a, const tile_work &w, key_blocks &blocks, int &stage, int key0,
                           score_tile &score)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
            score[i][j] = 0.0f;
#pragma unroll 1
    for (int block = 0; block < BLOCKS; block++, stage++) {
        ree_copy_wait<0>();
        __syncthreads();
        blocks.fetch(a, w, stage + 1);
        const int left = HEAD_FOURS - block * (BLOCK / 4);
        if (w.any_sees(key0 + w.own.warp_key, 64))
            multiply_keys(score, w.scores().q + w.own.row * HEAD_ROW + block * BLOCK,
                          w.scores().k[stage & 1] + w.own.key * BLOCK,
                          HEAD_FOURS % (BLOCK / 4) == 0 || left > BLOCK / 4 ? BLOCK / 4 : left, w.own.column);
    }
    if (w.all_see(key0 + w.own.warp_key, 64))
        finish_scores<true>(a, w, key0, score);
    else
        finish_scores<false>(a, w, key0, score);
}

REE_INLINE void keep_scores(const ree_attention_args &a, const tile_work &w, int key0, const score_tile &score)
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        f32 *const to = w.facts().kept + (w.own.row + i * 4) * a.score_row + key0 + w.own.key;
        attention_store4(to, make_float4(score[i][0], score[i][1], score[i][2], score[i][3]));
        attention_store4(to + 32, make_float4(score[i][4], score[i][5], score[i][6], score[i][7]));
    }
}

/* From the largest scores of each thread's rows to what is subtracted from the scores of each row. */
REE_INLINE void join_largest(const tile_work &w, const f32 *largest)
{
    f32 found[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        found[i] = largest[i * THREADS];
#pragma unroll
        for (int lanes = 2; lanes <= 8; lanes *= 2)
            found[i] = attention_larger(found[i], __shfl_xor_sync(REE_ALL_LANES, found[i], lanes));
    }
    __syncthreads();
    if (w.own.column == 0)
#pragma unroll
        for (int i = 0; i < 8; i++)
            w.scores().largest[w.own.warp_key / 64 * ROWS + w.own.row + i * 4] = found[i];
    __syncthreads();
    if (threadIdx.x < ROWS) {
        f32 of_row = w.scores().largest[threadIdx.x];
        for (int n = 1; n < WARPS_N; n++)
            of_row = attention_larger(of_row, w.scores().largest[n * ROWS + threadIdx.x]);
        w.facts().shift[threadIdx.x] = attention_shift(of_row);
    }
    ree_copy_wait<0>();
    __syncthreads();
}

/* First pass: what is subtracted from the scores of each row. The queries' copies are begun. */
REE_PASS void find_largest(const ree_attention_args &a)
{
    const tile_work w;
    f32 *const largest = w.scores().largest + threadIdx.x; /* that of row i, THREADS behind the one before */
#pragma unroll
    for (int i = 0; i < 8; i++)
        largest[i * THREADS] = REE_MINUS_INFINITY;
    int key0 = w.facts().first / KEYS * KEYS, stage = 0;
    key_blocks blocks = {key0, 0};
    blocks.fetch(a, w, 0);
#pragma unroll 1
    for (; key0 < w.facts().end; key0 += KEYS) {
        score_tile score;
        score_keys(a, w, blocks, stage, key0, score);
        if (REE_KEPT)
            keep_scores(a, w, key0, score);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            f32 found = largest[i * THREADS];
#pragma unroll
            for (int j = 0; j < 8; j++)
                found = attention_larger(found, score[i][j]);
            largest[i * THREADS] = found;
        }
    }
    join_largest(w, largest);
}

/* -- weights -------------------------------------------------------------------------------------------- */
/* The thread's part of summing weights: rows row + 32 n; of 16 lanes those from 4 four on. */
struct weight_place {
    int row, four;

    __device__ weight_place()
    {
        const int warp = static_cast<int>(threadIdx.x / REE_WARP), lane = static_cast<int>(threadIdx.x % REE_WARP);
        row = warp * 8 + (lane & 7);
        four = lane >> 3;
    }
};

/* The lanes of `sum` over the open chunk. */
struct weight_sums {
    f32 lanes[LANE_ROWS][4];

    __device__ void clear()
    {
#pragma unroll
        for (int n = 0; n < LANE_ROWS; n++)
#pragma unroll
            for (int l = 0; l < 4; l++)
                lanes[n][l] = 0.0f;
    }

    __device__ void add(int n, const float4 &weight)
    {
#pragma unroll
        for (int l = 0; l < 4; l++)
            lanes[n][l] = f32_add(lanes[n][l], attention_part(weight, l));
    }

    /* Store the sums of chunk number `chunk` and begin the next one. */
    __device__ void finish(const ree_attention_args &a, const tile_work &w, const weight_place &own, int chunk)
    {
#pragma unroll
        for (int n = 0; n < LANE_ROWS; n++) {
#pragma unroll
            for (int apart = 16; apart >= 8; apart /= 2) /* lanes l and l + 8, then l + 4 */
#pragma unroll
                for (int l = 0; l < 4; l++)
                    lanes[n][l] = f32_add(lanes[n][l], __shfl_xor_sync(REE_ALL_LANES, lanes[n][l], apart));
            const f32 sum = f32_add(f32_add(lanes[n][0], lanes[n][2]), f32_add(lanes[n][1], lanes[n][3]));
            if (own.four == 0)
                w.facts().sums[(own.row + n * 32) * a.chunks + chunk] = sum;
        }
        clear();
    }
};

REE_INLINE f32 weight_of(f32 score, f32 shift) { return ree_exp(f32_sub(score, shift)); }

/* -- values --------------------------------------------------------------------------------------------- */
/* Steps of values, and of scores that were kept, on their way to shared memory. */
struct value_steps {
    int key;

    /* Begin to copy the step from `key` on to a buffer, if there is one before `end`. */
    __device__ void fetch(const ree_attention_args &a, const tile_work &w, const weight_place &own, int end, int buffer)
    {
        if (key < end) {
            if (REE_KEPT)
                fetch_scores(a, w, own, buffer);
            enum { FOURS = COLUMNS / 4, APART = THREADS / FOURS };
            const int at = static_cast<int>(threadIdx.x) / FOURS, column = static_cast<int>(threadIdx.x) % FOURS * 4;
            f32 *const to = w.values().v[buffer & 1] + threadIdx.x * 4;
            attention_copy_rows<STEP / APART>(
                w.facts().v + static_cast<i64>(key + at) * a.v_token + column, APART * a.v_token,
                w.facts().end - key - at, APART, VALUE - column, w.facts().v_is_aligned,
                [&](int n) -> f32 * { return to + n * (THREADS * 4); });
            key += STEP;
        }
        ree_copy_commit();
    }

    /* Those that the thread itself turns into weights: they need no barrier before that. */
    __device__ void fetch_scores(const ree_attention_args &a, const tile_work &w, const weight_place &own, int buffer)
    {
        f32 *const to = w.values().weights[buffer & (REE_KEPT ? 1 : 0)];
#pragma unroll
        for (int n = 0; n < LANE_ROWS; n++)
#pragma unroll
            for (int half = 0; half < STEP; half += 16) {
                const int row = own.row + n * 32, at = half + own.four * 4;
                ree_copy_async16(to + row * WEIGHT_ROW + at, w.facts().kept + row * a.score_row + key + at);
            }
    }
};

typedef f32 mixed_tile[8][4 * VALUE_FOURS];

REE_INLINE void clear_mixed(mixed_tile &mixed)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int c = 0; c < 4 * VALUE_FOURS; c++)
            mixed[i][c] = 0.0f;
}

/* Go on with the chains over a step of keys, key0 the first. weights, v: from the thread's first row and column on. */
template <bool is_whole>
REE_INLINE void multiply_values(const tile_work &w, mixed_tile &mixed, const f32 *weights, const f32 *v, int key0)
{
#pragma unroll 2
    for (int k = 0; k < STEP; k += 4) {
        float4 value[4][VALUE_FOURS];
#pragma unroll
        for (int part = 0; part < 4; part++)
#pragma unroll
            for (int f = 0; f < VALUE_FOURS; f++)
                value[part][f] = attention_load4(v + (k + part) * COLUMNS + f * 32);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float4 weight = attention_load4(weights + i * 4 * WEIGHT_ROW + k);
            const int row = w.own.row + i * 4;
#pragma unroll
            for (int part = 0; part < 4; part++)
                if (is_whole || (key0 + k + part >= w.facts().start[row] && key0 + k + part < w.facts().ends[row]))
#pragma unroll
                    for (int c = 0; c < 4 * VALUE_FOURS; c++)
                        mixed[i][c] = f32_fma(attention_part(weight, part), attention_part(value[part][c / 4], c % 4),
                                              mixed[i][c]);
        }
    }
}

REE_INLINE void multiply_step(const tile_work &w, mixed_tile &mixed, const f32 *weights, const f32 *v, int key0)
{
    weights += w.own.row * WEIGHT_ROW;
    v += w.own.value;
    if (w.all_see(key0, STEP))
        multiply_values<true>(w, mixed, weights, v, key0);
    else if (w.any_sees(key0, STEP))
        multiply_values<false>(w, mixed, weights, v, key0);
}

/* The thread's own totals. */
REE_INLINE f32 *totals_of(const tile_work &w, int i, int f)
{
    return w.values().totals + ((i * VALUE_FOURS + f) * THREADS + static_cast<int>(threadIdx.x)) * 4;
}

REE_INLINE void clear_totals(const tile_work &w)
{
#pragma unroll
    for (int n = 0; n < 8 * VALUE_FOURS; n++)
        attention_store4(totals_of(w, 0, n), make_float4(0.0f, 0.0f, 0.0f, 0.0f));
}

/* Ends a chunk: totals += chains; new chains begin. */
REE_INLINE void add_chunk(const tile_work &w, mixed_tile &mixed)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int f = 0; f < VALUE_FOURS; f++) {
            f32 *const place = totals_of(w, i, f);
            const float4 total = attention_load4(place);
            const f32 *const chain = mixed[i] + 4 * f;
            attention_store4(place, make_float4(f32_add(total.x, chain[0]), f32_add(total.y, chain[1]),
                                                f32_add(total.z, chain[2]), f32_add(total.w, chain[3])));
        }
    clear_mixed(mixed);
}

REE_INLINE bool ends_chunk(const tile_work &w, int key) { return key % REE_CHUNK == 0 || key >= w.facts().end; }

/* Second pass, over scores that were kept. */
REE_PASS void mix_kept(const ree_attention_args &a)
{
    const tile_work w;
    const weight_place own;
    mixed_tile mixed;
    weight_sums sums;
    f32 shift[LANE_ROWS];
    clear_totals(w);
    clear_mixed(mixed);
    sums.clear();
#pragma unroll
    for (int n = 0; n < LANE_ROWS; n++)
        shift[n] = w.facts().shift[own.row + n * 32];
    int stage = 0, key0 = w.facts().first / STEP * STEP;
    value_steps steps = {key0};
    steps.fetch(a, w, own, w.facts().end, 0);
#pragma unroll 1
    for (; key0 < w.facts().end; key0 += STEP, stage++) {
        f32 *const weights = w.values().weights[stage & (REE_KEPT ? 1 : 0)];
        ree_copy_wait<0>();
#pragma unroll 1
        for (int half = 0; half < STEP; half += 16)
#pragma unroll
            for (int n = 0; n < LANE_ROWS; n++) {
                f32 *const place = weights + (own.row + n * 32) * WEIGHT_ROW + half + own.four * 4;
                float4 four = attention_load4(place);
                four = make_float4(weight_of(four.x, shift[n]), weight_of(four.y, shift[n]),
                                   weight_of(four.z, shift[n]), weight_of(four.w, shift[n]));
                sums.add(n, four);
                attention_store4(place, four);
            }
        __syncthreads();
        steps.fetch(a, w, own, w.facts().end, stage + 1);
        multiply_step(w, mixed, weights, w.values().v[stage & 1], key0);
        if (ends_chunk(w, key0 + STEP)) {
            add_chunk(w, mixed);
            sums.finish(a, w, own, key0 / REE_CHUNK);
        }
    }
}

/* Weights of a tile of scores, for all threads. */
REE_INLINE void share_weights(const tile_work &w, const score_tile &score)
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const f32 shift = w.facts().shift[w.own.row + i * 4];
        f32 *const to = w.values().weights[0] + (w.own.row + i * 4) * WEIGHT_ROW + w.own.key;
#pragma unroll
        for (int j = 0; j < 8; j += 4)
            attention_store4(to + j * 8, make_float4(weight_of(score[i][j], shift), weight_of(score[i][j + 1], shift),
                                                     weight_of(score[i][j + 2], shift),
                                                     weight_of(score[i][j + 3], shift)));
    }
}

/* Second pass that computes the scores again. */
REE_PASS void mix_again(const ree_attention_args &a)
{
    const tile_work w;
    const weight_place own;
    mixed_tile mixed;
    weight_sums sums;
    clear_totals(w);
    clear_mixed(mixed);
    sums.clear();
    int stage = 0, value_stage = 0, key0 = w.facts().first / KEYS * KEYS;
    key_blocks blocks = {key0, 0};
    value_steps steps = {key0};
    blocks.fetch(a, w, 0);
#pragma unroll 1
    for (; key0 < w.facts().end; key0 += KEYS) {
        const int end = key0 + KEYS < w.facts().end ? key0 + KEYS : w.facts().end;
        {
            score_tile score;
            score_keys(a, w, blocks, stage, key0, score);
            share_weights(w, score);
        }
        steps.fetch(a, w, own, end, value_stage);
#pragma unroll 1
        for (int key = key0; key < end; key += STEP, value_stage++) {
            ree_copy_wait<0>();
            __syncthreads();
            steps.fetch(a, w, own, end, value_stage + 1);
            const f32 *const weights = w.values().weights[0] + (key - key0);
#pragma unroll
            for (int n = 0; n < LANE_ROWS; n++)
#pragma unroll
                for (int half = 0; half < STEP; half += 16)
                    sums.add(n, attention_load4(weights + (own.row + n * 32) * WEIGHT_ROW + half + own.four * 4));
            multiply_step(w, mixed, weights, w.values().v[value_stage & 1], key);
        }
        if (ends_chunk(w, key0 + KEYS)) {
            add_chunk(w, mixed);
            sums.finish(a, w, own, key0 / REE_CHUNK);
        }
    }
}

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
    if (warp_row >= 4 / WARPS_N)
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
