/* Attention of few rows over many keys (decoding): blocks share the keys, and what they find is put together in order.
 *
 * A unit is up to REE_ROWS rows that share a head of keys: the heads of queries of one token, or of several tokens of a
 * sequence that follow one another, so that keys and values are read once for all of them. ree_split_scores gives the
 * scores of spans of REE_SPAN keys and the largest of each; ree_split_values, of chunks of 256 keys, the chains of FMAs
 * over them and the sums of their weights. The block of a unit's columns that is done last adds the chunks in ascending
 * order and divides: a count of blocks, whose order does not matter, says which that is.
 *
 * Both read what they need of the cache in one go of asynchronous copies and then compute: several blocks of an SM keep
 * its share of the memory's bandwidth busy. Grids are cut for the whole context; who finds no keys leaves at once.
 */
#include "ree.cuh"
#include "values.cuh"
#include "folds.cuh"
#include "attention.cuh"

#ifndef REE_ROWS
#define REE_ROWS 4 /* a power of two up to 16 */
#endif
#ifndef REE_SPAN
#define REE_SPAN 128 /* keys of a block of scores, one for each thread */
#endif
#ifndef REE_COLUMNS
#define REE_COLUMNS 64 /* columns of a block of values, a multiple of 4 up to 64 */
#endif
#ifndef REE_BLOCKS
#define REE_BLOCKS 2 /* of values, of an SM at a time */
#endif

enum {
    ROWS = REE_ROWS,
    SPAN = REE_SPAN,
    COLUMNS = REE_COLUMNS,
    COLUMN_BLOCKS = (VALUE - 1) / COLUMNS + 1,
    CHUNK_THREADS = REE_CHUNK,
    GROUPS = 4,                                 /* of threads of a block of values, each with every fourth row */
    GROUP_THREADS = CHUNK_THREADS / GROUPS,
    WEIGHT_ROW = REE_CHUNK + 16                 /* floats: two rows of 16 lanes each are all banks */
};
static_assert(SPAN % REE_WARP == 0 && COLUMNS <= GROUP_THREADS && COLUMNS % 4 == 0, "threads of a block");

struct ree_split_args {
    const f32 *q, *k, *v;
    f32 *out;
    i64 q_item, q_head, q_token, k_item, k_head, k_token, v_item, v_head, v_token, out_item, out_head, out_token;
    const i64 *position, *slot;
    i64 items, k_heads, group, tokens, keys, causal, window;
    i64 first_token, wave; /* the tokens of this launch: `wave` from first_token on, as far as there are */
    i64 unit_tokens;       /* tokens of a unit (1: its rows may be a part of a token's) */
    i64 token_units;       /* units of a token (1 unless unit_tokens is 1) */
    i64 stretch, rows_min; /* as in attention.cu; stretch 0: that is not launched */
    f32 *scores;           /* of each row score_row */
    f32 *largest;          /* of each row and span */
    f32 *parts, *sums;     /* of each row and chunk: VALUE chains; of each block of columns, row and chunk: the sum */
    u32 *done;             /* of each unit and block of columns: blocks that are */
    i64 rows, score_row, spans, chunks;
    ree_score_args e;
};

/* A unit: rows [first, first + rows) of those of `item` from `token` on. */
struct split_unit {
    i64 item, head, token, first;
    i64 number, row; /* of the unit, of its first row among all of this launch */
    int rows, start, end; /* keys that any row sees */
    bool exists;
};

/* What is known of each row of a unit. */
struct split_rows {
    i64 q[ROWS], out[ROWS]; /* where they begin, in floats */
    int token[ROWS], head[ROWS], start[ROWS], end[ROWS];
    f32 shift[ROWS], sum[ROWS];
};

/* Whether the tiles' kernel computes the sequence at `token`; asked by all threads of a block. */
REE_INLINE bool split_is_tiled(const ree_split_args &a, i64 token)
{
    if (!a.slot || a.stretch == 0)
        return false;
    const i64 first = token - static_cast<u32>(token) % static_cast<u32>(a.stretch);
    const i64 end = attention_min(first + a.stretch, a.tokens), slot = a.slot[token];
    int count = 0;
    for (i64 n = first; n < end; n += blockDim.x)
        count += __syncthreads_count(threadIdx.x < end - n && a.slot[n + threadIdx.x] == slot);
    return attention_is_tiled(slot, count, a.group, a.rows_min);
}

/* How many tokens belong to the unit that begins at u.token; 0: none begins there. */
REE_INLINE int split_tokens(const ree_split_args &a, const split_unit &u)
{
    const u32 unit = static_cast<u32>(a.unit_tokens), token = static_cast<u32>(u.token);
    const u32 in_stretch = a.stretch ? token % static_cast<u32>(a.stretch) : token, within = in_stretch % unit;
    if (within && (!a.slot || a.slot[u.token - 1] == u.item))
        return 0;
    i64 count = attention_min(unit - within, a.tokens - u.token);
    if (a.stretch)
        count = attention_min(count, a.stretch - in_stretch);
    if (!a.slot)
        return static_cast<int>(count);
    int same = 1;
    while (same < count && a.slot[u.token + same] == u.item)
        same++;
    return same;
}

/* Unit number n of the grid, if there is one. */
REE_INLINE split_unit split_unit_of(const ree_split_args &a, u32 n)
{
    const u32 units = static_cast<u32>(a.token_units), wave = static_cast<u32>(a.wave);
    const u32 heads = static_cast<u32>(a.k_heads), at = n / units % wave, place = n / units / wave;
    split_unit u;
    u.number = n;
    u.token = a.first_token + at;
    u.head = place % heads;
    u.item = place / heads;
    u.first = n % units * ROWS;
    u.row = (place * a.wave + at) * a.group + u.first;
    u.exists = u.token < a.tokens && !split_is_tiled(a, u.token);
    if (!u.exists)
        return u;
    if (a.slot)
        u.item = a.slot[u.token];
    const int count = split_tokens(a, u);
    u.exists = count > 0;
    if (!u.exists)
        return u;
    u.rows = static_cast<int>(attention_min(count * a.group - u.first, ROWS));
    u.start = u.item < 0 ? 0 : attention_keys_of(a, u.token).start;
    u.end = u.item < 0 ? 1 : attention_keys_of(a, u.token + count - 1).end;
    return u;
}

REE_INLINE void place_rows(const ree_split_args &a, const split_unit &u, split_rows &rows)
{
    const int row = static_cast<int>(threadIdx.x);
    if (row < ROWS) {
        const u32 group = static_cast<u32>(a.group), number = static_cast<u32>(u.first) + (row < u.rows ? row : 0);
        const i64 token = u.token + number / group, head = u.head * a.group + number % group;
        const i64 batch = a.slot ? 0 : u.item;
        const attention_keys keys = attention_keys_of(a, token);
        rows.q[row] = batch * a.q_item + head * a.q_head + token * a.q_token;
        rows.out[row] = batch * a.out_item + head * a.out_head + token * a.out_token;
        rows.token[row] = static_cast<int>(token);
        rows.head[row] = static_cast<int>(head);
        rows.start[row] = keys.start;
        rows.end[row] = keys.end;
    }
    __syncthreads();
}

/* -- scores --------------------------------------------------------------------------------------------- */
struct span_memory {
    f32 q[ROWS * HEAD_ROW];
    f32 k[SPAN * HEAD_ROW];
};
static_assert(sizeof(span_memory) == REE_SPAN_BYTES, "shared memory of a span");

typedef f32 span_largest[SPAN / REE_WARP][ROWS]; /* of each warp's keys */

REE_INLINE void fetch_queries(const ree_split_args &a, const split_rows &rows, f32 *to)
{
    const bool is_aligned = attention_is_aligned(a.q, HEAD, a.q_item, a.q_head, a.q_token);
    for (int n = static_cast<int>(threadIdx.x); n < ROWS * HEAD_FOURS; n += SPAN) {
        const int row = n / HEAD_FOURS, d = n % HEAD_FOURS * 4;
        attention_copy4(to + row * HEAD_ROW + d, a.q + rows.q[row] + d, HEAD - d, is_aligned);
    }
}

/* k: the first key of the span; there: how many the unit sees. */
REE_INLINE void fetch_keys(const ree_split_args &a, const f32 *k, int there, bool is_aligned, f32 *to)
{
#pragma unroll 8
    for (int n = static_cast<int>(threadIdx.x); n < SPAN * HEAD_FOURS; n += SPAN) {
        const int key = n / HEAD_FOURS, d = n % HEAD_FOURS * 4;
        attention_copy4(to + key * HEAD_ROW + d, k + key * a.k_token + d, key < there ? HEAD - d : 0, is_aligned);
    }
    ree_copy_commit();
}

/* The thread's key against `rows` rows (a constant, at least as many as there are): scores, and the warp's largest. */
template <int rows>
REE_INLINE void score_span(const ree_split_args &a, const split_unit &u, const split_rows &known,
                           const span_memory &memory, i64 key0, span_largest &largest)
{
    const int thread = static_cast<int>(threadIdx.x), key = static_cast<int>(key0) + thread;
    const f32 *const k = memory.k + thread * HEAD_ROW;
    f32 dot[rows];
#pragma unroll
    for (int r = 0; r < rows; r++)
        dot[r] = 0.0f;
#pragma unroll 1
    for (int first = 0; first < HEAD_FOURS; first += REE_CHUNK / 4) {
        f32 chain[rows];
#pragma unroll
        for (int r = 0; r < rows; r++)
            chain[r] = 0.0f;
#pragma unroll 4
        for (int c = first; c < (HEAD_FOURS < first + REE_CHUNK / 4 ? HEAD_FOURS : first + REE_CHUNK / 4); c++) {
            const float4 of_key = attention_load4(k + c * 4);
#pragma unroll
            for (int r = 0; r < rows; r++) {
                const float4 of_row = attention_load4(memory.q + r * HEAD_ROW + c * 4);
#pragma unroll
                for (int part = 0; part < 4; part++)
                    chain[r] = f32_fma(attention_part(of_row, part), attention_part(of_key, part), chain[r]);
            }
        }
#pragma unroll
        for (int r = 0; r < rows; r++)
            dot[r] = f32_add(dot[r], chain[r]);
    }
#pragma unroll
    for (int r = 0; r < rows; r++) {
        f32 score = REE_MINUS_INFINITY;
        if (key >= known.start[r] && key < known.end[r])
            score = ree_score(a.e, u.item, known.head[r], known.token[r], key, dot[r]);
        if (r < u.rows)
            a.scores[(u.row + r) * a.score_row + key] = score;
#pragma unroll
        for (int lanes = REE_WARP / 2; lanes > 0; lanes /= 2)
            score = attention_larger(score, __shfl_xor_sync(REE_ALL_LANES, score, lanes));
        if (thread % REE_WARP == 0)
            largest[thread / REE_WARP][r] = score;
    }
}

REE_INLINE void score_rows(const ree_split_args &a, const split_unit &u, const split_rows &known,
                           const span_memory &memory, i64 key0, span_largest &largest)
{
    if (u.rows <= 1)
        score_span<1>(a, u, known, memory, key0, largest);
    else if (u.rows <= 2 || ROWS == 2)
        score_span<ROWS < 2 ? ROWS : 2>(a, u, known, memory, key0, largest);
    else if (u.rows <= 4 || ROWS == 4)
        score_span<ROWS < 4 ? ROWS : 4>(a, u, known, memory, key0, largest);
    else if (u.rows <= 8 || ROWS == 8)
        score_span<ROWS < 8 ? ROWS : 8>(a, u, known, memory, key0, largest);
    else
        score_span<ROWS>(a, u, known, memory, key0, largest);
}

/* Grid: units, and spans in turns. */
REE_KERNEL(ree_split_scores, ree_split_args, SPAN)
{
    __shared__ split_rows rows;
    __shared__ span_largest largest;
    span_memory &memory = *reinterpret_cast<span_memory *>(ree_shared());
    const split_unit u = split_unit_of(a, blockIdx.x);
    const int thread = static_cast<int>(threadIdx.x);
    if (!u.exists || u.item < 0 || (u.start / SPAN + blockIdx.y) * static_cast<i64>(SPAN) >= u.end)
        return;
    if (blockIdx.y == 0)
        for (int n = thread; n < COLUMN_BLOCKS; n += SPAN)
            a.done[u.number * COLUMN_BLOCKS + n] = 0;
    const f32 *const k = a.k + u.item * a.k_item + u.head * a.k_head;
    const bool is_aligned = attention_is_aligned(a.k, HEAD, a.k_item, a.k_head, a.k_token);
    place_rows(a, u, rows);
    fetch_queries(a, rows, memory.q);
    for (i64 span = u.start / SPAN + blockIdx.y; span * SPAN < u.end; span += gridDim.y) {
        const i64 key0 = span * SPAN;
        fetch_keys(a, k + key0 * a.k_token, static_cast<int>(attention_min(u.end - key0, SPAN)), is_aligned, memory.k);
        ree_copy_wait<0>();
        __syncthreads();
        score_rows(a, u, rows, memory, key0, largest);
        __syncthreads();
        if (thread < u.rows) {
            f32 found = largest[0][thread];
            for (int warp = 1; warp < SPAN / REE_WARP; warp++)
                found = attention_larger(found, largest[warp][thread]);
            a.largest[(u.row + thread) * a.spans + span] = found;
        }
    }
}

/* -- values --------------------------------------------------------------------------------------------- */
struct chunk_memory {
    f32 v[REE_CHUNK * COLUMNS];
    f32 weights[ROWS * WEIGHT_ROW];
};
static_assert(sizeof(chunk_memory) == REE_CHUNK_BYTES, "shared memory of a chunk");

/* What is subtracted from the rows' scores: a warp for each row in turn. */
REE_INLINE void find_shifts(const ree_split_args &a, const split_unit &u, split_rows &rows)
{
    const int lane = static_cast<int>(threadIdx.x % REE_WARP);
    for (int r = static_cast<int>(threadIdx.x / REE_WARP); r < u.rows; r += CHUNK_THREADS / REE_WARP) {
        const f32 *const of_spans = a.largest + (u.row + r) * a.spans;
        f32 largest = REE_MINUS_INFINITY;
        for (i64 span = u.start / SPAN + lane; span * SPAN < u.end; span += REE_WARP)
            largest = attention_larger(largest, of_spans[span]);
        __syncwarp();
#pragma unroll
        for (int lanes = REE_WARP / 2; lanes > 0; lanes /= 2)
            largest = attention_larger(largest, __shfl_xor_sync(REE_ALL_LANES, largest, lanes));
        if (lane == 0)
            rows.shift[r] = attention_shift(largest);
    }
    __syncthreads();
}

REE_INLINE void fetch_chunk(const ree_split_args &a, const split_unit &u, f32 *to, i64 key0, int column0)
{
    const bool is_aligned = attention_is_aligned(a.v, VALUE | COLUMNS, a.v_item, a.v_head, a.v_token);
    const f32 *const v = a.v + u.item * a.v_item + u.head * a.v_head + key0 * a.v_token + column0;
    const int there = static_cast<int>(attention_min(u.end - key0, REE_CHUNK));
#pragma unroll 8
    for (int n = static_cast<int>(threadIdx.x); n < REE_CHUNK * COLUMNS / 4; n += CHUNK_THREADS) {
        const int key = n / (COLUMNS / 4), column = n % (COLUMNS / 4) * 4;
        const int left = key < there ? VALUE - column0 - column : 0;
        attention_copy4(to + n * 4, v + key * a.v_token + column, left, is_aligned);
    }
    ree_copy_commit();
}

/* Weights of the chunk, each thread those of one key; then their sums, 16 lanes each. */
REE_INLINE void weigh_chunk(const ree_split_args &a, const split_unit &u, const split_rows &known, f32 *weights,
                            i64 chunk, f32 *sums)
{
    const int thread = static_cast<int>(threadIdx.x), key = static_cast<int>(chunk) * REE_CHUNK + thread;
    const f32 *const scores = a.scores + u.row * a.score_row + key;
#pragma unroll 4
    for (int r = 0; r < u.rows; r++) {
        f32 weight = 0.0f;
        if (key >= known.start[r] && key < known.end[r])
            weight = ree_exp(f32_sub(scores[r * a.score_row], known.shift[r]));
        weights[r * WEIGHT_ROW + thread] = weight;
    }
    __syncthreads();
    const int r = thread / REE_LANES, lane = thread % REE_LANES;
    f32 sum = 0.0f;
    if (r < u.rows)
#pragma unroll
        for (int k = 0; k < REE_CHUNK; k += REE_LANES)
            sum = f32_add(sum, weights[r * WEIGHT_ROW + k + lane]);
    __syncwarp();
    sum = ree_half_tree(sum);
    if (lane == 0 && r < u.rows)
        sums[(u.row + r) * a.chunks + chunk] = sum;
}

/* Keys [start, end) of a chunk, from its first on. */
struct chunk_keys {
    int first, start, end;
};

/* Those that all rows see. */
REE_INLINE chunk_keys whole_keys(const split_unit &u, const split_rows &known, i64 chunk)
{
    chunk_keys found = {static_cast<int>(chunk) * REE_CHUNK, 0, REE_CHUNK};
    for (int r = 0; r < u.rows; r++) {
        found.start = known.start[r] - found.first > found.start ? known.start[r] - found.first : found.start;
        found.end = known.end[r] - found.first < found.end ? known.end[r] - found.first : found.end;
    }
    return found;
}

/* Chains over the chunk: the thread's column, rows group, group + GROUPS, ..., `rows` at most. */
template <int rows>
REE_INLINE void multiply_chunk(const ree_split_args &a, const split_unit &u, const split_rows &known,
                               const chunk_memory &memory, i64 chunk, int column, int group, f32 *parts)
{
    const chunk_keys whole = whole_keys(u, known, chunk);
    const bool is_whole = whole.start == 0 && whole.end == REE_CHUNK;
    const int last = static_cast<int>(attention_min(u.end - whole.first, REE_CHUNK));
    f32 chain[rows];
#pragma unroll
    for (int r = 0; r < rows; r++)
        chain[r] = 0.0f;
#pragma unroll 4
    for (int k = 0; k < last; k += 4) {
        f32 value[4];
#pragma unroll
        for (int part = 0; part < 4; part++)
            value[part] = memory.v[(k + part) * COLUMNS + column];
#pragma unroll
        for (int r = 0; r < rows; r++) {
            const int row = group + r * GROUPS < u.rows ? group + r * GROUPS : 0;
            const float4 weight = attention_load4(memory.weights + row * WEIGHT_ROW + k);
            const int key = whole.first + k;
#pragma unroll
            for (int part = 0; part < 4; part++)
                if (is_whole || (key + part >= known.start[row] && key + part < known.end[row]))
                    chain[r] = f32_fma(attention_part(weight, part), value[part], chain[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < rows; r++)
        if (group + r * GROUPS < u.rows)
            parts[((u.row + group + r * GROUPS) * a.chunks + chunk) * VALUE + column] = chain[r];
}

REE_INLINE void mix_chunk(const ree_split_args &a, const split_unit &u, const split_rows &known, chunk_memory &memory,
                          i64 chunk, int column0, int columns, f32 *sums)
{
    const int column = static_cast<int>(threadIdx.x) % GROUP_THREADS;
    const int group = static_cast<int>(threadIdx.x) / GROUP_THREADS;
    f32 *const parts = a.parts + column0;
    fetch_chunk(a, u, memory.v, chunk * REE_CHUNK, column0);
    weigh_chunk(a, u, known, memory.weights, chunk, sums);
    ree_copy_wait<0>();
    __syncthreads();
    if (column < columns && group < u.rows) {
        if (u.rows <= GROUPS || ROWS <= GROUPS)
            multiply_chunk<1>(a, u, known, memory, chunk, column, group, parts);
        else if (u.rows <= 2 * GROUPS || ROWS <= 2 * GROUPS)
            multiply_chunk<2>(a, u, known, memory, chunk, column, group, parts);
        else
            multiply_chunk<4>(a, u, known, memory, chunk, column, group, parts);
    }
    __syncthreads();
}

/* Adds the chunks of the unit's rows in ascending order, and divides. */
REE_PASS void finish_rows(const ree_split_args &a, const split_unit &u, split_rows &rows, int column0, int columns,
                          const volatile f32 *sums)
{
    const int thread = static_cast<int>(threadIdx.x);
    const i64 first = u.start / REE_CHUNK, end = (u.end + REE_CHUNK - 1) / REE_CHUNK;
    if (thread < u.rows) {
        const volatile f32 *const of_chunks = sums + (u.row + thread) * a.chunks;
        rows.sum[thread] =
            ree_sum<f32>(end, [&](i64 chunk) -> f32 { return chunk < first ? 0.0f : of_chunks[chunk]; });
    }
    __syncthreads();
    for (int n = thread; n < u.rows * columns; n += CHUNK_THREADS) {
        const int r = n / columns, column = column0 + n % columns;
        const volatile f32 *const parts = a.parts + (u.row + r) * a.chunks * VALUE + column;
        f32 total = 0.0f;
#pragma unroll 8
        for (i64 chunk = first; chunk < end; chunk++)
            total = f32_add(total, parts[chunk * VALUE]);
        a.out[rows.out[r] + column] = attention_result(total, rows.sum[r]);
    }
}

/* Padding: its results are 0. */
REE_INLINE void clear_rows(const ree_split_args &a, const split_unit &u, const split_rows &rows, int column0,
                           int columns)
{
    for (int n = static_cast<int>(threadIdx.x); n < u.rows * columns; n += CHUNK_THREADS)
        a.out[rows.out[n / columns] + column0 + n % columns] = 0.0f;
}

/* Grid: units and their blocks of columns, and chunks in turns. */
REE_KERNEL(ree_split_values, ree_split_args, REE_BOUNDS(CHUNK_THREADS, REE_BLOCKS))
{
    __shared__ split_rows rows;
    __shared__ u32 done;
    chunk_memory &memory = *reinterpret_cast<chunk_memory *>(ree_shared());
    const split_unit u = split_unit_of(a, blockIdx.x / COLUMN_BLOCKS);
    const int block = static_cast<int>(blockIdx.x % COLUMN_BLOCKS), column0 = block * COLUMNS;
    const int columns = VALUE - column0 < COLUMNS ? VALUE - column0 : COLUMNS;
    const i64 first = u.start / REE_CHUNK, end = (u.end + REE_CHUNK - 1) / REE_CHUNK;
    if (!u.exists || first + blockIdx.y >= end)
        return;
    place_rows(a, u, rows);
    if (u.item < 0) {
        if (blockIdx.y == 0)
            clear_rows(a, u, rows, column0, columns);
        return;
    }
    f32 *const sums = a.sums + block * a.rows * a.chunks;
    find_shifts(a, u, rows);
    for (i64 chunk = first + blockIdx.y; chunk < end; chunk += gridDim.y)
        mix_chunk(a, u, rows, memory, chunk, column0, columns, sums);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        done = atomicAdd(a.done + u.number * COLUMN_BLOCKS + block, 1u) + 1;
    __syncthreads();
    if (done == attention_min(gridDim.y, end - first)) {
        __threadfence();
        finish_rows(a, u, rows, column0, columns, sums);
    }
}
