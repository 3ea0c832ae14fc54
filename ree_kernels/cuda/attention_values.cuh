/* The tiles of attention.cu, whose constants and arguments stand before this: the second pass. */
#ifndef REE_ATTENTION_VALUES_CUH
#define REE_ATTENTION_VALUES_CUH

/* -- weights -------------------------------------------------------------------------------------------- */
/* The thread's part of summing weights: rows row + ROWS_APART n; of 16 lanes those from 4 four on. */
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
                w.facts().sums[(own.row + n * ROWS_APART) * a.chunks + chunk] = sum;
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
                const int row = own.row + n * ROWS_APART, at = half + own.four * 4;
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
        shift[n] = w.facts().shift[own.row + n * ROWS_APART];
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
                f32 *const place = weights + (own.row + n * ROWS_APART) * WEIGHT_ROW + half + own.four * 4;
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
                    sums.add(n, attention_load4(weights + (own.row + n * ROWS_APART) * WEIGHT_ROW + half +
                                                own.four * 4));
            multiply_step(w, mixed, weights, w.values().v[value_stage & 1], key);
        }
        if (ends_chunk(w, key0 + KEYS)) {
            add_chunk(w, mixed);
            sums.finish(a, w, own, key0 / REE_CHUNK);
        }
    }
}

#endif
