/* The tiles of attention.cu, whose constants and arguments stand before this: shared memory, and the first pass. */
#ifndef REE_ATTENTION_SCORES_CUH
#define REE_ATTENTION_SCORES_CUH

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
    attention_keys any[WARPS_M], all[WARPS_M];
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

#endif
