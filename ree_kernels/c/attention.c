/* Attention: a block of rows that share keys and values passes through scores, hook, and values.
 *
 * The block's scores (rows x s) stay in L2. Both products are the register tiles of matmul; keys and values are
 * packed per block. Under a causal mask a tile leaves out what lies beyond its last row's length; p = 0 there
 * adds nothing to shorter rows of the tile, unless a value is infinite or NaN: then each row goes alone.
 */
#include "attention.h"
#include "panel.h"
#include "sum.h"
#include "tile.h"

enum { MAX_POINTERS = 32 };

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* Rows [r0, r1) of one batch item that share a head of keys and values. */
typedef struct {
    const ree_attention_args *g;
    int64_t r0, r1;
    const float *k, *v;
    float *scores;  /* rows x score_row */
    float *a_block; /* rows x TILE_A_ROW: a chunk of q, then of p */
    float *b_block; /* one panel of keys; then 256 rows of values, packed */
    float *out;     /* rows x d_v, rounded up to panels */
    void *rest;
} block_t;

static int64_t b_block_floats(int64_t d_v)
{
    const int64_t values = round_up(d_v, REE_NR);
    return REE_CHUNK * (values > REE_NR ? values : REE_NR);
}

int64_t ree_attention_scratch_bytes(int64_t rows, int64_t score_row, int64_t d_v)
{
    const int64_t row = round_up(score_row, 16) + TILE_A_ROW + round_up(d_v, REE_NR);
    return (round_up(rows * row, 16) + b_block_floats(d_v)) * (int64_t)sizeof(float);
}

static int64_t row_length(const ree_attention_args *g, int64_t row)
{
    return g->causal ? min64(g->s, row % g->t + 1) : g->s;
}

/* The longest of rows [r0, r1). */
static int64_t max_length(const ree_attention_args *g, int64_t r0, int64_t r1)
{
    int64_t longest = 0;
    for (int64_t r = r0; r < r1; r++) {
        const int64_t length = row_length(g, r);
        longest = length > longest ? length : longest;
    }
    return longest;
}

static const float *q_row(const ree_attention_args *g, int64_t row)
{
    const int64_t head = row / g->t;
    return g->q + head / g->heads * g->q_batch + head % g->heads * g->q_head + row % g->t * g->q_token;
}

static float *out_row(const ree_attention_args *g, int64_t row)
{
    const int64_t head = row / g->t;
    return g->out + head / g->heads * g->out_batch + head % g->heads * g->out_head + row % g->t * g->out_token;
}

/* -- scores ------------------------------------------------------------------------------- */

static void score_panel(const block_t *s, int64_t d0, int64_t d_count, int64_t c, int64_t c_end)
{
    const ree_attention_args *g = s->g;
    const int64_t cols = min64(c_end - c, REE_NR);
    pack_panel(s->b_block, s->k + c * g->k_token + d0, 1, g->k_token, d_count, cols);
    tile_args t = {.b = s->b_block, .c_row = g->score_row, .k_count = d_count, .flags = d0 == 0 ? TILE_FIRST : 0};
    for (int64_t r = s->r0; r < s->r1; r += REE_MR) {
        const int64_t end = min64(s->r1, r + REE_MR);
        if (g->causal && max_length(g, r, end) <= c)
            continue;
        t.a = s->a_block + (r - s->r0) * TILE_A_ROW;
        t.c = s->scores + (r - s->r0) * g->score_row + c;
        tiles[end - r](&t, cols);
    }
}

static void scores(const block_t *s, int64_t c_end)
{
    const ree_attention_args *g = s->g;
    for (int64_t d0 = 0; d0 == 0 || d0 < g->d; d0 += REE_CHUNK) {
        const int64_t d_count = min64(g->d - d0, REE_CHUNK);
        for (int64_t r = s->r0; r < s->r1; r++)
            pack_row(s->a_block + (r - s->r0) * TILE_A_ROW, q_row(g, r) + d0, 1, d_count);
        for (int64_t c = 0; c < c_end; c += REE_NR)
            score_panel(s, d0, d_count, c, c_end);
    }
}

/* Scores to p, through the hook, in place. Under a causal mask tile by tile, each as far as its last row needs. */
static void call_hook(const block_t *s, int64_t c_end)
{
    const ree_attention_args *g = s->g;
    void *pointers[MAX_POINTERS];
    memcpy(pointers, g->hook_args->pointers, (size_t)g->hook_pointers * sizeof *pointers);
    /* the hook adds row * score_row: through integers, since the pointer may leave the scratch */
    void *base = (void *)((uintptr_t)s->scores - (uintptr_t)(s->r0 * g->score_row) * sizeof(float));
    pointers[0] = pointers[g->hook_pointers - 1] = base;
    ree_jit_args local = *g->hook_args;
    local.pointers = pointers;
    const int64_t step = g->causal ? REE_MR : s->r1 - s->r0;
    for (int64_t r = s->r0; r < s->r1; r += step) {
        const int64_t end = min64(s->r1, r + step);
        g->hook(&local, r, end, 0, g->causal ? max_length(g, r, end) : c_end, s->rest);
    }
}

/* -- values ------------------------------------------------------------------------------- */

static int all_finite(const float *p, int64_t n)
{
    uint32_t finite = 1;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, p + i, sizeof bits);
        finite &= (bits & 0x7f800000u) != 0x7f800000u;
    }
    return (int)finite;
}

/* Pack values [s0, s0 + count) as panels; whether all are finite. */
static int pack_values(const block_t *s, int64_t s0, int64_t count)
{
    const ree_attention_args *g = s->g;
    for (int64_t c = 0; c < g->d_v; c += REE_NR)
        pack_panel(s->b_block + c * REE_CHUNK, s->v + s0 * g->v_token + c, g->v_token, 1, count,
                   min64(g->d_v - c, REE_NR));
    int finite = 1;
    for (int64_t c = 0; c < g->d_v; c += REE_NR)
        finite &= all_finite(s->b_block + c * REE_CHUNK, count * REE_NR);
    return finite;
}

/* Add the chunk at s0 to rows [r, end), whose folds end at `length` or before. */
static void value_tile(const block_t *s, int64_t s0, int64_t r, int64_t end, int64_t length)
{
    const ree_attention_args *g = s->g;
    const int64_t width = round_up(g->d_v, REE_NR);
    tile_args t = {.a = s->a_block + (r - s->r0) * TILE_A_ROW, .c_row = width, .flags = s0 == 0 ? TILE_FIRST : 0};
    t.k_count = min64(length - s0, REE_CHUNK);
    for (int64_t row = r; row < end; row++)
        pack_row(s->a_block + (row - s->r0) * TILE_A_ROW, s->scores + (row - s->r0) * g->score_row + s0, 1, t.k_count);
    for (int64_t c = 0; c < width; c += REE_NR) {
        t.b = s->b_block + c * REE_CHUNK;
        t.c = s->out + (r - s->r0) * width + c;
        tiles[end - r](&t, REE_NR);
    }
}

static void values(const block_t *s, int64_t c_end)
{
    const ree_attention_args *g = s->g;
    for (int64_t s0 = 0; s0 == 0 || s0 < c_end; s0 += REE_CHUNK) {
        const int64_t step = pack_values(s, s0, min64(c_end - s0, REE_CHUNK)) || !g->causal ? REE_MR : 1;
        for (int64_t r = s->r0; r < s->r1; r += step) {
            const int64_t end = min64(s->r1, r + step), length = max_length(g, r, end);
            if (s0 == 0 || length > s0)
                value_tile(s, s0, r, end, length);
        }
    }
}

/* -- rows --------------------------------------------------------------------------------- */

static void finish_row(const block_t *s, int64_t row)
{
    const ree_attention_args *g = s->g;
    const float *p = s->scores + (row - s->r0) * g->score_row;
    const float *from = s->out + (row - s->r0) * round_up(g->d_v, REE_NR);
    const float sum = sum_row(p, row_length(g, row));
    float *to = out_row(g, row);
    for (int64_t c = 0; c < g->d_v; c++)
        to[c] = sum == 0.0f ? 0.0f : f32_canonical(from[c] / sum);
}

static void attend(const block_t *s)
{
    const int64_t c_end = max_length(s->g, s->r0, s->r1);
    scores(s, c_end);
    call_hook(s, c_end);
    values(s, c_end);
    for (int64_t row = s->r0; row < s->r1; row++)
        finish_row(s, row);
}

void ree_attention(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_attention_args *g = args;
    const int64_t group_rows = g->heads / g->k_heads * g->t, rows = r1 - r0;
    (void)c0; /* a box has all columns */
    (void)c1;
    block_t s = {.g = g, .b_block = scratch};
    s.a_block = s.b_block + b_block_floats(g->d_v);
    s.out = s.a_block + rows * TILE_A_ROW;
    s.scores = s.out + rows * round_up(g->d_v, REE_NR);
    s.rest = (char *)scratch + ree_attention_scratch_bytes(rows, g->score_row, g->d_v);
    while (r0 < r1) {
        const int64_t group = r0 / group_rows, item = group / g->k_heads, head = group % g->k_heads;
        s.r0 = r0;
        s.r1 = min64(r1, (group + 1) * group_rows);
        s.k = g->k + item * g->k_batch + head * g->k_head;
        s.v = g->v + item * g->v_batch + head * g->v_head;
        attend(&s);
        r0 = s.r1;
    }
}
