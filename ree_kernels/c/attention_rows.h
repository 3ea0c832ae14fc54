/* Attention of a block of rows that share a head of keys and values: scores, hook, and values.
 *
 * The block's scores (rows x keys) stay in L2. Both products are the register tiles of matmul over packed panels,
 * which a source makes or has. A tile leaves out what lies before its first row's start or beyond its last row's end;
 * p = 0 there adds nothing to the other rows of the tile, unless a value is infinite or NaN: then each row goes alone.
 */
#ifndef REE_ATTENTION_ROWS_H
#define REE_ATTENTION_ROWS_H

#include "panel.h"
#include "sum.h"
#include "tile.h"

enum { MAX_POINTERS = 32 };

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* One row: where its query lies and its result goes, and the keys [start, end) that its folds run over. */
typedef struct {
    const float *q;
    float *out;
    int64_t start, end;
} attention_row;

/* Where keys and values come from, as packed panels.
 * keys: panel of keys [c, c + cols) over components [d0, d0 + d_count); values: keys [s0, s0 + count) of all
 * components, panels REE_CHUNK * REE_NR floats apart, and whether all of them are finite. Either may pack into `to`. */
typedef struct attention_source {
    const float *(*keys)(const struct attention_source *, int64_t c, int64_t cols, int64_t d0, int64_t d_count,
                         float *to);
    const float *(*values)(const struct attention_source *, int64_t s0, int64_t count, float *to, int *finite);
} attention_source;

/* The hook that turns raw scores into p: row r of the block is row `first + r` of its index space. */
typedef struct {
    ree_kernel function;
    const ree_jit_args *args;
    int64_t pointers, first;
} attention_hook;

typedef struct {
    const attention_source *source;
    const attention_row *rows;
    int64_t count, d, d_v, score_row;
    attention_hook hook;
    float *b_block; /* one panel of keys; then 256 rows of values, packed */
    float *a_block; /* count x TILE_A_ROW: a chunk of q, then of p */
    float *out;     /* count x d_v, rounded up to panels */
    float *scores;  /* count x score_row */
    void *rest;
} attention_block;

static inline int64_t b_block_floats(int64_t d_v)
{
    const int64_t values = round_up(d_v, REE_NR);
    return REE_CHUNK * (values > REE_NR ? values : REE_NR);
}

static inline int64_t attention_rows_scratch(int64_t rows, int64_t score_row, int64_t d_v)
{
    const int64_t row = round_up(score_row, 16) + TILE_A_ROW + round_up(d_v, REE_NR);
    const int64_t floats = round_up(rows * row, 16) + b_block_floats(d_v);
    return floats * (int64_t)sizeof(float) + round_up(rows * (int64_t)sizeof(attention_row), 64);
}

/* Lay out the scratch of a box of `rows` rows; returns its attention_rows. */
static inline attention_row *attention_begin(attention_block *s, int64_t rows, void *scratch)
{
    s->b_block = scratch;
    s->a_block = s->b_block + b_block_floats(s->d_v);
    s->out = s->a_block + rows * TILE_A_ROW;
    s->scores = s->out + rows * round_up(s->d_v, REE_NR);
    char *end = (char *)scratch + attention_rows_scratch(rows, s->score_row, s->d_v);
    s->rest = end;
    return (attention_row *)(void *)(end - round_up(rows * (int64_t)sizeof(attention_row), 64));
}

/* The keys that any of rows [r0, r1) sees: [start, end). */
typedef struct {
    int64_t start, end;
} key_range;

static inline key_range keys_of(const attention_block *s, int64_t r0, int64_t r1)
{
    key_range found = {s->rows[r0].start, 0};
    for (int64_t r = r0; r < r1; r++) {
        found.start = min64(found.start, s->rows[r].start);
        found.end = max64(found.end, s->rows[r].end);
    }
    return found;
}

/* -- scores ------------------------------------------------------------------------------- */

static void score_panel(const attention_block *s, int64_t d0, int64_t d_count, int64_t c, int64_t c_end)
{
    const int64_t cols = min64(c_end - c, REE_NR);
    tile_args t = {.c_row = s->score_row, .k_count = d_count, .flags = d0 == 0 ? TILE_FIRST : 0};
    t.b = s->source->keys(s->source, c, cols, d0, d_count, s->b_block);
    for (int64_t r = 0; r < s->count; r += REE_MR) {
        const int64_t end = min64(s->count, r + REE_MR);
        const key_range keys = keys_of(s, r, end);
        if (keys.end <= c || keys.start >= c + cols)
            continue;
        t.a = s->a_block + r * TILE_A_ROW;
        t.c = s->scores + r * s->score_row + c;
        tiles[end - r](&t, cols);
    }
}

static void scores(const attention_block *s, key_range keys)
{
    for (int64_t d0 = 0; d0 == 0 || d0 < s->d; d0 += REE_CHUNK) {
        const int64_t d_count = min64(s->d - d0, REE_CHUNK);
        for (int64_t r = 0; r < s->count; r++)
            pack_row(s->a_block + r * TILE_A_ROW, s->rows[r].q + d0, 1, d_count);
        for (int64_t c = keys.start / REE_NR * REE_NR; c < keys.end; c += REE_NR)
            score_panel(s, d0, d_count, c, keys.end);
    }
}

/* Scores to p, through the hook, in place: tile by tile, each as far as its rows need. p = 0 before that. */
static void call_hook(const attention_block *s)
{
    void *pointers[MAX_POINTERS];
    memcpy(pointers, s->hook.args->pointers, (size_t)s->hook.pointers * sizeof *pointers);
    /* the hook adds row * score_row: through integers, since the pointer may leave the scratch */
    void *base = (void *)((uintptr_t)s->scores - (uintptr_t)(s->hook.first * s->score_row) * sizeof(float));
    pointers[0] = pointers[s->hook.pointers - 1] = base;
    ree_jit_args local = *s->hook.args;
    local.pointers = pointers;
    for (int64_t r = 0; r < s->count; r += REE_MR) {
        const int64_t end = min64(s->count, r + REE_MR);
        const key_range keys = keys_of(s, r, end);
        for (int64_t row = r; row < end && keys.start; row++)
            memset(s->scores + row * s->score_row, 0, (size_t)keys.start * sizeof(float));
        s->hook.function(&local, s->hook.first + r, s->hook.first + end, keys.start, keys.end, s->rest);
    }
}

/* -- values ------------------------------------------------------------------------------- */

static inline int all_finite(const float *p, int64_t n)
{
    uint32_t finite = 1;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, p + i, sizeof bits);
        finite &= (bits & 0x7f800000u) != 0x7f800000u;
    }
    return (int)finite;
}

/* Add the chunk at s0 to rows [r, end), which see keys within `keys`; `first` is where all folds of the block begin. */
static void value_tile(const attention_block *s, const float *v, int64_t s0, int64_t first, int64_t r, int64_t end,
                       key_range keys)
{
    const int64_t width = round_up(s->d_v, REE_NR), skip = max64(keys.start - s0, 0);
    tile_args t = {.a = s->a_block + r * TILE_A_ROW, .c_row = width, .flags = s0 == first ? TILE_FIRST : 0};
    t.k_count = min64(keys.end - s0, REE_CHUNK) - skip;
    for (int64_t row = r; row < end; row++)
        pack_row(s->a_block + row * TILE_A_ROW, s->scores + row * s->score_row + s0 + skip, 1, t.k_count);
    for (int64_t c = 0; c < width; c += REE_NR) {
        t.b = v + c * REE_CHUNK + skip * REE_NR;
        t.c = s->out + r * width + c;
        tiles[end - r](&t, REE_NR);
    }
}

/* A total that starts at +0 keeps its bits when it is given an empty chunk; rows that see nothing in the first one
 * need it all the same, since their totals begin there. */
static void values(const attention_block *s, key_range keys)
{
    const int64_t first = keys.start / REE_CHUNK * REE_CHUNK;
    for (int64_t s0 = first; s0 == first || s0 < keys.end; s0 += REE_CHUNK) {
        int finite = 1;
        const int64_t count = max64(min64(keys.end - s0, REE_CHUNK), 0);
        const float *v = s->source->values(s->source, s0, count, s->b_block, &finite);
        const int64_t step = finite ? REE_MR : 1;
        for (int64_t r = 0; r < s->count; r += step) {
            const int64_t end = min64(s->count, r + step);
            key_range seen = keys_of(s, r, end);
            if (seen.end <= s0 || seen.start >= s0 + REE_CHUNK)
                seen.start = seen.end = s0;
            if (s0 == first || seen.end > s0)
                value_tile(s, v, s0, first, r, end, seen);
        }
    }
}

/* -- rows --------------------------------------------------------------------------------- */

static void finish_row(const attention_block *s, int64_t row)
{
    const float *from = s->out + row * round_up(s->d_v, REE_NR);
    const float sum = sum_row(s->scores + row * s->score_row, s->rows[row].end);
    float *to = s->rows[row].out;
    for (int64_t c = 0; c < s->d_v; c++)
        to[c] = sum == 0.0f ? 0.0f : f32_canonical(from[c] / sum);
}

static void attend(const attention_block *s)
{
    const key_range keys = keys_of(s, 0, s->count);
    scores(s, keys);
    call_hook(s);
    values(s, keys);
    for (int64_t row = 0; row < s->count; row++)
        finish_row(s, row);
}

#endif
