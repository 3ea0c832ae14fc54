/* Rows are counted by expert; those of one expert go through ree_matmul together, out of scratch and into it. */
#include "experts.h"

#include <string.h>

#include "matmul.h"
#include "panel.h"

enum { BLOCK = 16384 };                 /* rows that are counted together: a box's list of them stays in cache */
enum { GATHER_FLOATS = 1 << 17 };       /* rows of x that wait in scratch: half of a second-level cache */
enum { TILES_MIN = 2, TILES_MAX = 20 }; /* register tiles of rows in one product */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t ree_experts_block(void) { return BLOCK; }

/* Where the parts of a box's scratch begin, in bytes. */
typedef struct {
    int64_t order; /* the box's rows of one block, by expert (int32_t); before it, at 0, where each expert's end */
    int64_t x;     /* the rows of one product, k floats each */
    int64_t out;   /* their results, out_row floats apart */
    int64_t rest;  /* what ree_matmul needs */
    int64_t together, out_row;
} parts_t;

static parts_t parts(int64_t rows, int64_t cols, int64_t k, int64_t experts)
{
    const int64_t tiles = max64(TILES_MIN, min64(TILES_MAX, GATHER_FLOATS / max64(1, k * REE_MR)));
    parts_t p = {.together = min64(rows, tiles * REE_MR), .out_row = cols + REE_NR};
    p.order = lines(experts * 4);
    p.x = p.order + lines(min64(rows, BLOCK) * 4);
    p.out = p.x + lines(p.together * k * 4);
    p.rest = p.out + lines(p.together * p.out_row * 4);
    return p;
}

int64_t ree_experts_scratch_bytes(int64_t rows, int64_t cols, int64_t k, int64_t experts, int64_t w_packed)
{
    const parts_t p = parts(rows, cols, k, experts);
    return p.rest + ree_matmul_scratch_bytes(p.together, k, w_packed);
}

/* The rows at positions [p0, p1) of the block [b0, b1); ends[e]: the position behind the last row of expert e. */
static void order_rows(const ree_experts_args *g, int64_t b0, int64_t b1, int64_t p0, int64_t p1, int32_t *ends,
                       int32_t *order)
{
    memset(ends, 0, (size_t)g->experts * sizeof *ends);
    for (int64_t s = b0; s < b1; s++) {
        const int64_t e = g->expert[s * g->expert_step];
        if (e < 0 || e >= g->experts)
            *g->status = 1;
        else
            ends[e]++;
    }
    int32_t begin = 0;
    for (int64_t e = 0; e < g->experts; e++) {
        const int32_t count = ends[e];
        ends[e] = begin;
        begin += count;
    }
    for (int64_t s = b0; s < b1; s++) {
        const int64_t e = g->expert[s * g->expert_step];
        if (e < 0 || e >= g->experts)
            continue;
        const int64_t at = ends[e]++;
        if (at >= p0 && at < p1)
            order[at - p0] = (int32_t)(s - b0);
    }
}

/* An expert's packed matrix from a column on at which a panel begins. */
static const void *matrix(const ree_experts_args *g, int64_t expert, int64_t panel)
{
    if (g->w_packed == REE_PACKED_BF16)
        return (const uint16_t *)g->w + expert * ree_pack_bf16_words(g->n, g->k) + panel * g->k;
    return (const float *)g->w + expert * ree_pack_b_floats(g->n, g->k) + panel * g->k;
}

/* Rows x + list[i] * x_row, i < count, times one expert's matrix, columns [c0, c1). */
static void product(const ree_experts_args *g, int64_t b0, const int32_t *list, int64_t count, int64_t expert,
                    int64_t c0, int64_t c1, const parts_t *p, char *scratch)
{
    const int64_t panel = c0 / REE_NR * REE_NR; /* column 0 of the product, so that results begin with scratch */
    const float *x = g->x + b0 * g->x_row;
    float *out = g->out + b0 * g->out_row + panel;
    ree_matmul_args m = {.m = count, .n = g->n - panel, .k = g->k, .b_packed = g->w_packed};
    m.b = matrix(g, expert, panel);
    if (count == 1) {
        m.a = x + list[0] * g->x_row;
        m.a_k = g->x_k;
        m.c = out + list[0] * g->out_row;
        ree_matmul(&m, 0, 1, c0 - panel, c1 - panel, scratch + p->rest);
        return;
    }
    float *gathered = (float *)(scratch + p->x);
    for (int64_t i = 0; i < count; i++)
        pack_row(gathered + i * g->k, x + list[i] * g->x_row, g->x_k, g->k);
    m.a = gathered;
    m.a_row = g->k;
    m.a_k = 1;
    m.c = (float *)(scratch + p->out);
    m.c_row = p->out_row;
    ree_matmul(&m, 0, count, c0 - panel, c1 - panel, scratch + p->rest);
    for (int64_t i = 0; i < count; i++)
        memcpy(out + list[i] * g->out_row + (c0 - panel), m.c + i * m.c_row + (c0 - panel), (size_t)(c1 - c0) * 4);
}

void ree_experts(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_experts_args *g = args;
    const parts_t p = parts(r1 - r0, c1 - c0, g->k, g->experts);
    int32_t *ends = scratch, *order = (int32_t *)((char *)scratch + p.order);
    for (int64_t b0 = r0 / BLOCK * BLOCK; b0 < r1; b0 += BLOCK) {
        const int64_t b1 = min64(b0 + BLOCK, g->rows), p0 = max64(r0, b0) - b0, p1 = min64(r1, b1) - b0;
        order_rows(g, b0, b1, p0, p1, ends, order);
        int64_t at = p0;
        for (int64_t e = 0; e < g->experts; e++)
            for (const int64_t end = min64(p1, ends[e]); at < end;) {
                const int64_t count = min64(p.together, end - at);
                product(g, b0, order + (at - p0), count, e, c0, c1, &p, scratch);
                at += count;
            }
    }
}
