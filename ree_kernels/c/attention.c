/* Attention over tensors: keys and values are packed for each block of rows. */
#include "attention.h"
#include "attention_rows.h"

typedef struct {
    attention_source source;
    const ree_attention_args *g;
    const float *k, *v; /* of one batch item and head */
} dense_source;

static const float *dense_keys(const attention_source *source, int64_t c, int64_t cols, int64_t d0, int64_t d_count,
                               float *to)
{
    const dense_source *s = (const dense_source *)source;
    pack_panel(to, s->k + c * s->g->k_token + d0, 1, s->g->k_token, d_count, cols);
    return to;
}

static const float *dense_values(const attention_source *source, int64_t s0, int64_t count, float *to, int *finite)
{
    const dense_source *s = (const dense_source *)source;
    const ree_attention_args *g = s->g;
    for (int64_t c = 0; c < g->d_v; c += REE_NR)
        pack_panel(to + c * REE_CHUNK, s->v + s0 * g->v_token + c, g->v_token, 1, count, min64(g->d_v - c, REE_NR));
    for (int64_t c = 0; c < g->d_v; c += REE_NR)
        *finite &= all_finite(to + c * REE_CHUNK, count * REE_NR);
    *finite |= !g->causal; /* all rows see the same keys */
    return to;
}

int64_t ree_attention_scratch_bytes(int64_t rows, int64_t score_row, int64_t d_v)
{
    return attention_rows_scratch(rows, score_row, d_v);
}

static attention_row row_of(const ree_attention_args *g, int64_t row)
{
    const int64_t head = row / g->t, token = row % g->t, item = head / g->heads;
    attention_row found = {.end = g->causal ? min64(g->s, token + 1) : g->s};
    found.start = g->window ? max64(found.end - g->window, 0) : 0;
    found.q = g->q + item * g->q_batch + head % g->heads * g->q_head + token * g->q_token;
    found.out = g->out + item * g->out_batch + head % g->heads * g->out_head + token * g->out_token;
    return found;
}

void ree_attention(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_attention_args *g = args;
    const int64_t group_rows = g->heads / g->k_heads * g->t;
    (void)c0; /* a box has all columns */
    (void)c1;
    attention_block s = {.d = g->d, .d_v = g->d_v, .score_row = g->score_row};
    attention_row *rows = attention_begin(&s, r1 - r0, scratch);
    s.rows = rows;
    s.hook = (attention_hook){.function = g->hook, .args = g->hook_args, .pointers = g->hook_pointers};
    for (int64_t end; r0 < r1; r0 = end) {
        const int64_t group = r0 / group_rows, item = group / g->k_heads, head = group % g->k_heads;
        dense_source source = {{dense_keys, dense_values}, g, g->k + item * g->k_batch + head * g->k_head,
                               g->v + item * g->v_batch + head * g->v_head};
        end = min64(r1, (group + 1) * group_rows);
        s.source = &source.source;
        s.count = end - r0;
        s.hook.first = r0;
        for (int64_t r = r0; r < end; r++)
            rows[r - r0] = row_of(g, r);
        attend(&s);
    }
}
