/* Column reductions: lanes are rows k, l + 16, ..., vectors run along the columns. */
#include "reduce.h"
#include "sum.h"

enum { BLOCK = 64 }; /* columns at a time: their 16 lanes stay in the first cache */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t ree_reduce_scratch_bytes(int64_t n)
{
    return ((n + REE_SUM_CHUNK - 1) / REE_SUM_CHUNK + 1) * BLOCK * (int64_t)sizeof(float);
}

/* to = the vector `from` added to, taken as maximum or minimum with, what is there. */
REE_INLINE void combine(const int op, float *to, const float *from, int64_t cols)
{
    for (int64_t c = 0; c < cols; c += W) {
        const int64_t left = min64(cols - c, W);
        const vf a = vf_load(to + c), b = left == W ? vf_load(from + c) : vf_load_part(from + c, left);
        vf_store(to + c, op == REE_REDUCE_SUM ? vf_add(a, b) : op == REE_REDUCE_MAX ? vf_max(a, b) : vf_min(a, b));
    }
}

/* sum_chunk of sum.h for every column: n <= 256 rows, `step` floats apart. */
static void chunk_columns(const float *x, int64_t step, int64_t n, int64_t cols, float *to)
{
    float lanes[REE_SUM_LANES][BLOCK] = {{0.0f}};
    for (int64_t k = 0; k < n; k++)
        combine(REE_REDUCE_SUM, lanes[k % REE_SUM_LANES], x + k * step, cols);
    for (int half = REE_SUM_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            combine(REE_REDUCE_SUM, lanes[l], lanes[l + half], cols);
    memcpy(to, lanes[0], sizeof lanes[0]);
}

/* Chunk sums, and their chunk sums, until one is left, in `sums`. */
static void sum_columns(const float *x, int64_t step, int64_t n, int64_t cols, float *sums)
{
    do {
        int64_t count = 0;
        for (int64_t k = 0; k == 0 || k < n; k += REE_SUM_CHUNK)
            chunk_columns(x + k * step, step, min64(n - k, REE_SUM_CHUNK), cols, sums + count++ * BLOCK);
        x = sums;
        step = BLOCK;
        n = count;
    } while (n > 1);
}

static void extreme_columns(int op, const float *x, int64_t step, int64_t n, int64_t cols, float *to)
{
    for (int64_t c = 0; c < BLOCK; c++)
        to[c] = op == REE_REDUCE_MAX ? -__builtin_inff() : __builtin_inff();
    for (int64_t k = 0; k < n; k++) {
        if (op == REE_REDUCE_MAX)
            combine(REE_REDUCE_MAX, to, x + k * step, cols);
        else
            combine(REE_REDUCE_MIN, to, x + k * step, cols);
    }
}

void ree_reduce_columns(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_reduce_args *a = args;
    float *sums = scratch;
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t c = c0; c < c1; c += BLOCK) {
            const int64_t cols = min64(c1 - c, BLOCK);
            const float *x = a->x + r * a->x_row + c;
            if (a->op == REE_REDUCE_SUM)
                sum_columns(x, a->x_k, a->n, cols, sums);
            else
                extreme_columns((int)a->op, x, a->x_k, a->n, cols, sums);
            for (int64_t i = 0; i < cols; i++)
                a->out[r * a->out_row + c + i] = f32_canonical(sums[i]);
        }
    }
}
