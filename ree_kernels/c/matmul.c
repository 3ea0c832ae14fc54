/* Matrix product: blocks, packing and the choice of register tile. The order is in dot.h.
 *
 * Loops, outside in: chunks of 256 k; panels of B; register tiles of A's rows. A chunk of A is copied into
 * scratch so that its rows lie close together (rows far apart share few cache sets); packed B is read
 * as it lies. Totals wait in C, which stays in the cache for one block.
 */
#include "matmul.h"
#include "dot.h"
#include "panel.h"
#include "tile.h"

enum { A_ROW = REE_CHUNK + 16 };

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t ree_panel_cols(void) { return REE_NR; }
int64_t ree_tile_rows(void) { return REE_MR; }
int64_t ree_vector_floats(void) { return W; }

/* -- packing B -------------------------------------------------------------------------- */

int64_t ree_pack_b_floats(int64_t n, int64_t k) { return (n + REE_NR - 1) / REE_NR * REE_NR * k; }

int ree_pack_b(float *packed, int64_t n, int64_t k, int64_t c0, int64_t cols, const float *source, int64_t source_k,
               int64_t source_col)
{
    if (n < 0 || k < 0 || c0 < 0 || cols < 0 || cols > n - c0 || c0 % REE_NR || (cols % REE_NR && c0 + cols != n))
        return 1;
    for (int64_t j = 0; j < cols; j += REE_NR)
        pack_panel(packed + (c0 + j) * k, source + j * source_col, source_k, source_col, k, min64(cols - j, REE_NR));
    return 0;
}

/* -- blocks ----------------------------------------------------------------------------- */

int64_t ree_matmul_scratch_bytes(int64_t rows, int64_t cols, int64_t k, int64_t b_packed)
{
    const int64_t panels = (cols + REE_NR - 1) / REE_NR;
    const int64_t b_floats = b_packed ? 0 : panels * REE_NR * min64(k, REE_CHUNK);
    return (rows * A_ROW + b_floats) * (int64_t)sizeof(float) + 64;
}

/* Offset of the batch item that `row` belongs to. */
static int64_t batch_offset(const ree_matmul_args *g, const int64_t *strides, int64_t row)
{
    int64_t item = row / g->m, offset = 0;
    for (int64_t d = g->batch_dims - 1; d >= 0; d--) {
        offset += item % g->batch[d] * strides[d];
        item /= g->batch[d];
    }
    return offset;
}

/* Rows [r0, r1) that share one B, columns [c0, c1). */
static void block(const ree_matmul_args *g, const float *b, int64_t r0, int64_t r1, int64_t c0, int64_t c1,
                  float *scratch)
{
    float *const a_block = scratch, *const b_block = scratch + (r1 - r0) * A_ROW;
    for (int64_t k0 = 0; k0 == 0 || k0 < g->k; k0 += REE_CHUNK) {
        const int64_t k_count = min64(g->k - k0, REE_CHUNK);
        const int last = k0 + k_count == g->k;
        for (int64_t r = r0; r < r1; r++) {
            const float *row = g->a + batch_offset(g, g->a_batch, r) + r % g->m * g->a_row;
            pack_row(a_block + (r - r0) * A_ROW, row + k0 * g->a_k, g->a_k, k_count);
        }
        tile_args t = {.a_row = A_ROW, .b_k = REE_NR, .c_row = g->c_row, .k_count = k_count};
        t.flags = (k0 == 0 ? TILE_FIRST : 0) | (last && !g->epilogue ? TILE_CANONICAL : 0);
        for (int64_t c = c0; c < c1; c += REE_NR) {
            const int64_t cols = min64(c1 - c, REE_NR);
            if (g->b_packed) {
                t.b = b + c * g->k + k0 * REE_NR;
            } else {
                pack_panel(b_block, b + k0 * g->b_k + c * g->b_col, g->b_k, g->b_col, k_count, cols);
                t.b = b_block;
            }
            for (int64_t r = r0; r < r1; r += REE_MR) {
                t.a = a_block + (r - r0) * A_ROW;
                t.c = g->c + r * g->c_row + c;
                tiles[min64(r1 - r, REE_MR)](&t, cols);
            }
        }
    }
    if (g->epilogue)
        g->epilogue(g->epilogue_args, r0, r1, c0, c1, scratch);
}

void ree_matmul(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_matmul_args *g = args;
    while (r0 < r1) {
        const int64_t end = g->b_packed ? r1 : min64(r1, r0 - r0 % g->m + g->m);
        const float *b = g->b_packed ? g->b : g->b + batch_offset(g, g->b_batch, r0);
        block(g, b, r0, end, c0, c1, scratch);
        r0 = end;
    }
}
