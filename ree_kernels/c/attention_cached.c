/* Attention over a cache: its panels are read as they lie, so a step packs only its own rows. */
#include "attention_cached.h"
#include "attention_rows.h"

typedef struct {
    attention_source source;
    const float *keys, *values; /* of one slot and head */
    const uint8_t *unsafe;
    int64_t d, d_v;
} cached_source;

int64_t ree_cached_key_floats(int64_t context, int64_t d) { return context * d; }
int64_t ree_cached_value_floats(int64_t context, int64_t d_v) { return context * round_up(d_v, REE_NR); }

int64_t ree_cached_scratch_bytes(int64_t rows, int64_t context, int64_t d_v)
{
    return attention_rows_scratch(rows, context, d_v);
}

static const float *cached_keys(const attention_source *source, int64_t c, int64_t cols, int64_t d0, int64_t d_count,
                                float *to)
{
    (void)cols, (void)d_count, (void)to;
    const cached_source *s = (const cached_source *)source;
    return s->keys + c * s->d + d0 * REE_NR;
}

static const float *cached_values(const attention_source *source, int64_t s0, int64_t count, float *to, int *finite)
{
    (void)count, (void)to;
    const cached_source *s = (const cached_source *)source;
    *finite = !s->unsafe[s0 / REE_CHUNK];
    return s->values + s0 * round_up(s->d_v, REE_NR);
}

/* Number of a slot's head among all in the cache. */
static int64_t place_of(const ree_cached_args *g, int64_t slot, int64_t head) { return slot * g->k_heads + head; }

void ree_cached_append(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    (void)c0, (void)c1, (void)scratch;
    const ree_cached_args *g = args;
    for (int64_t r = r0; r < r1; r++) {
        const int64_t head = r / g->n, i = r % g->n, position = g->position[i];
        if (g->slot[i] < 0)
            continue;
        const int64_t place = place_of(g, g->slot[i], head);
        const float *k = g->k + head * g->k_head + i * g->k_token, *v = g->v + head * g->v_head + i * g->v_token;
        float *keys = g->keys + place * ree_cached_key_floats(g->context, g->d);
        keys += position / REE_NR * REE_NR * g->d + position % REE_NR;
        for (int64_t d = 0; d < g->d; d++)
            keys[d * REE_NR] = k[d];
        float *values = g->values + place * ree_cached_value_floats(g->context, g->d_v);
        values += position / REE_CHUNK * REE_CHUNK * round_up(g->d_v, REE_NR) + position % REE_CHUNK * REE_NR;
        for (int64_t d = 0; d < g->d_v; d += REE_NR)
            memcpy(values + d * REE_CHUNK, v + d, (size_t)min64(g->d_v - d, REE_NR) * sizeof *v);
        if (!all_finite(v, g->d_v)) /* several rows of a chunk may store it at once */
            __atomic_store_n(&g->unsafe[place * (g->context / REE_CHUNK) + position / REE_CHUNK], 1, __ATOMIC_RELAXED);
    }
}

/* Rows [i0, i1) of one slot and head, of which the box has members from r0 to r1. */
static void attend_run(const ree_cached_args *g, attention_block *s, attention_row *rows, int64_t r0, int64_t r1)
{
    const int64_t members = g->heads / g->k_heads, head = r0 / members / g->n;
    const int64_t place = place_of(g, g->slot[r0 / members % g->n], head);
    const cached_source source = {
        {cached_keys, cached_values}, g->keys + place * ree_cached_key_floats(g->context, g->d),
        g->values + place * ree_cached_value_floats(g->context, g->d_v), g->unsafe + place * (g->context / REE_CHUNK),
        g->d, g->d_v};
    for (int64_t r = r0; r < r1; r++) {
        const int64_t i = r / members % g->n, query = head * members + r % members;
        attention_row *row = &rows[r - r0];
        row->end = g->position[i] + 1;
        row->start = g->window ? max64(row->end - g->window, 0) : 0;
        row->q = g->q + query * g->q_head + i * g->q_token;
        row->out = g->out + query * g->out_head + i * g->out_token;
    }
    s->source = &source.source;
    s->count = r1 - r0;
    s->hook.first = r0;
    attend(s);
}

static void clear_row(const ree_cached_args *g, int64_t r)
{
    const int64_t members = g->heads / g->k_heads, query = r / members / g->n * members + r % members;
    memset(g->out + query * g->out_head + r / members % g->n * g->out_token, 0, (size_t)g->d_v * sizeof *g->out);
}

void ree_cached_attention(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_cached_args *g = args;
    const int64_t members = g->heads / g->k_heads;
    (void)c0, (void)c1; /* a box has all columns */
    attention_block s = {.d = g->d, .d_v = g->d_v, .score_row = g->context};
    attention_row *rows = attention_begin(&s, r1 - r0, scratch);
    s.rows = rows;
    s.hook = (attention_hook){.function = g->hook, .args = g->hook_args, .pointers = g->hook_pointers};
    for (int64_t end; r0 < r1; r0 = end) {
        const int64_t i = r0 / members % g->n, slot = g->slot[i];
        const int64_t head_end = (r0 / members / g->n + 1) * g->n * members;
        end = r0 + 1;
        if (slot < 0) {
            clear_row(g, r0);
            continue;
        }
        while (end < min64(r1, head_end) && g->slot[end / members % g->n] == slot)
            end++;
        attend_run(g, &s, rows, r0, end);
    }
}
