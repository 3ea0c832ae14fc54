/* Matrix product: blocks, packing and the choice of register tile. The order is in dot.h.
 *
 * Many rows: chunks of 256 k outermost, then panels of B, then register tiles of A's rows; a panel's
 * chunk stays in L1, the chunk of A streams from L2, totals wait in C. Few rows: panels outermost,
 * so that packed B is read once, front to back. A is always copied into scratch; packed floats are read as they lie.
 * Packed bfloat16 is widened in registers for few rows, in scratch for many, which share the work.
 */
#include "matmul.h"
#include "panel.h"
#include "tile_next.h"
#include "wide.h"

enum { EPILOGUE_FLOATS = 16384 }; /* C that an epilogue is called on while it is hot */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t ree_panel_cols(void) { return REE_NR; }
int64_t ree_tile_rows(void) { return REE_MR; }
int64_t ree_vector_floats(void) { return W; }

/* -- packing B -------------------------------------------------------------------------- */

/* One row more than the panels: a box that starts within a panel reads past its end. */
int64_t ree_pack_b_floats(int64_t n, int64_t k) { return round_up(n, REE_NR) * k + REE_NR; }

int ree_pack_b(float *packed, int64_t n, int64_t k, int64_t c0, int64_t cols, const float *source, int64_t source_k,
               int64_t source_col)
{
    if (n < 0 || k < 0 || c0 < 0 || cols < 0 || cols > n - c0 || c0 % REE_NR || (cols % REE_NR && c0 + cols != n))
        return 1;
    for (int64_t j = 0; j < cols; j += REE_NR)
        pack_panel(packed + (c0 + j) * k, source + j * source_col, source_k, source_col, k, min64(cols - j, REE_NR));
    memset(packed + round_up(n, REE_NR) * k, 0, REE_NR * sizeof *packed);
    return 0;
}

void ree_pack_b_box(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    (void)r0, (void)r1, (void)scratch;
    const ree_pack_b_args *p = args;
    for (int64_t c = c0; c < c1; c += REE_NR)
        pack_panel(p->packed + c * p->k, p->source + c * p->source_col, p->source_k, p->source_col, p->k,
                   min64(c1 - c, REE_NR));
    if (c1 == p->n) /* the padding behind the last panel is its box's */
        memset(p->packed + round_up(p->n, REE_NR) * p->k, 0, REE_NR * sizeof *p->packed);
}

int64_t ree_pack_bf16_words(int64_t n, int64_t k) { return round_up(n, REE_NR) * k; }

void ree_pack_bf16_box(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    (void)r0, (void)r1, (void)scratch;
    const ree_pack_bf16_args *p = args;
    for (int64_t c = c0; c < c1; c += REE_NR)
        pack_panel_bf16(p->packed + c * p->k, p->source + c * p->source_col, p->source_k, p->source_col, p->k,
                        min64(c1 - c, REE_NR));
}

/* -- the parts of a product --------------------------------------------------------------- */

/* Rows [r0, r1) that share one B, and columns [c0, c1). */
typedef struct {
    const ree_matmul_args *g;
    const float *b; /* unless packed: of this batch item */
    int64_t r0, r1, c0, c1;
    float *a_block; /* packed rows of A: one chunk, or (few rows) all chunks one after another */
    float *b_block; /* one chunk of a panel: packed dynamic B, or widened bfloat16 */
    void *rest;     /* what is left of the scratch, for the epilogue */
} block_t;

enum { B_BLOCK = REE_NR * (REE_CHUNK + 1), FEW_ROWS = 2 * REE_MR };

static int64_t b_block_floats(int64_t b_packed) { return b_packed == REE_PACKED ? 0 : B_BLOCK; }

int64_t ree_matmul_scratch_bytes(int64_t rows, int64_t k, int64_t b_packed)
{
    const int64_t chunks = k <= REE_CHUNK ? 1 : (k + REE_CHUNK - 1) / REE_CHUNK;
    const int64_t few = min64(rows, FEW_ROWS) * chunks, a_rows = few > rows ? few : rows;
    return (a_rows * TILE_A_ROW + b_block_floats(b_packed)) * (int64_t)sizeof(float);
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

static void pack_a(const block_t *s, float *to, int64_t k0, int64_t k_count)
{
    const ree_matmul_args *g = s->g;
    for (int64_t r = s->r0; r < s->r1; r++) {
        const float *row = g->a + batch_offset(g, g->a_batch, r) + r % g->m * g->a_row;
        pack_row(to + (r - s->r0) * TILE_A_ROW, row + k0 * g->a_k, g->a_k, k_count);
    }
}

/* Where the chunk at k0 of the panel that column c is in begins, in elements of packed B. */
static int64_t packed_at(const block_t *s, int64_t c, int64_t k0)
{
    return (c - c % REE_NR) * s->g->k + k0 * REE_NR;
}

static const uint16_t *bf16_chunk(const block_t *s, int64_t c, int64_t k0)
{
    return (const uint16_t *)s->g->b + packed_at(s, c, k0);
}

/* The chunk at k0 of the panel that begins or continues at column c, as packed floats. */
static const float *panel_chunk(const block_t *s, int64_t c, int64_t cols, int64_t k0, int64_t k_count)
{
    const ree_matmul_args *g = s->g;
    if (g->b_packed == REE_PACKED)
        return (const float *)g->b + packed_at(s, c, k0) + c % REE_NR;
    if (g->b_packed == REE_PACKED_BF16) {
        widen_panel(s->b_block, bf16_chunk(s, c, k0), k_count);
        return s->b_block + c % REE_NR;
    }
    pack_panel(s->b_block, s->b + k0 * g->b_k + c * g->b_col, g->b_k, g->b_col, k_count, cols);
    return s->b_block;
}

static int tile_flags(const ree_matmul_args *g, int64_t k0, int64_t k_count)
{
    const int canonical = k0 + k_count == g->k && !g->epilogue;
    return (k0 == 0 ? TILE_FIRST : 0) | (canonical ? TILE_CANONICAL : 0);
}

/* Columns of the panel from c on, within the block. */
static int64_t panel_end(const block_t *s, int64_t c) { return min64(s->c1, c / REE_NR * REE_NR + REE_NR); }

static void epilogue(const block_t *s, int64_t c0, int64_t c1)
{
    if (s->g->epilogue)
        s->g->epilogue(s->g->epilogue_args, s->r0, s->r1, c0, c1, s->rest);
}

/* -- many rows ---------------------------------------------------------------------------- */

/* What many rows fetch while they work on the chunk at k0 of the panel at c: that of the next panel. */
static const void *next_chunk(const block_t *s, int64_t c, int64_t k0)
{
    const ree_matmul_args *g = s->g;
    const int64_t next = c / REE_NR * REE_NR + REE_NR;
    const int64_t at = packed_at(s, next < g->n ? next : c, k0);
    if (g->b_packed == REE_PACKED_BF16)
        return (const uint16_t *)g->b + at;
    return g->b_packed ? (const float *)g->b + at : s->b_block;
}

static void chunk_of_many(const block_t *s, int64_t k0, int64_t c0, int64_t c1)
{
    const ree_matmul_args *g = s->g;
    const int64_t next_row = REE_NR * (g->b_packed == REE_PACKED_BF16 ? sizeof(uint16_t) : sizeof(float));
    tile_args t = {.c_row = g->c_row, .k_count = min64(g->k - k0, REE_CHUNK)};
    t.flags = tile_flags(g, k0, t.k_count);
    for (int64_t c = c0, end; c < c1; c = end) {
        end = min64(c1, panel_end(s, c));
        t.b = panel_chunk(s, c, end - c, k0, t.k_count);
        t.a = s->a_block;
        t.c = g->c + s->r0 * g->c_row + c;
        panel_tiles(t, s->r1 - s->r0, end - c, next_chunk(s, c, k0), next_row);
    }
}

static void many_rows(const block_t *s)
{
    const int64_t k = s->g->k;
    int64_t k0 = 0;
    for (; k - k0 > REE_CHUNK; k0 += REE_CHUNK) {
        pack_a(s, s->a_block, k0, REE_CHUNK);
        chunk_of_many(s, k0, s->c0, s->c1);
    }
    pack_a(s, s->a_block, k0, k - k0);
    if (!s->g->epilogue) {
        chunk_of_many(s, k0, s->c0, s->c1);
        return;
    }
    const int64_t cols = round_up(EPILOGUE_FLOATS / (s->r1 - s->r0) + 1, REE_NR);
    for (int64_t c = s->c0; c < s->c1; c += cols) {
        chunk_of_many(s, k0, c, min64(c + cols, s->c1));
        epilogue(s, c, min64(c + cols, s->c1));
    }
}

/* -- few rows ------------------------------------------------------------------------------ */

/* The tile that takes `rows` rows of the block from column c on; *panels: how many it takes at once. */
static tile_function few_tile(const block_t *s, int64_t rows, int64_t c, int64_t *panels)
{
    const int64_t packed = s->g->b_packed;
    *panels = 1;
    if (!packed || c % REE_NR)
        return tiles[rows];
    const int bf16 = packed == REE_PACKED_BF16;
    const int alone = rows == s->r1 - s->r0; /* two tiles go panel by panel */
    if (alone && rows <= WIDE_ROWS && s->c1 - c >= wide_tiles[rows].panels * REE_NR) {
        *panels = wide_tiles[rows].panels;
        return bf16 ? wide_tiles[rows].tile_bf16 : wide_tiles[rows].tile;
    }
    return bf16 ? far_bf16_tiles[rows] : far_tiles[rows];
}

/* Rows of the first of one or two tiles. It waits for the memory, so it has as many rows as leave the second enough
 * chains to hide their latency. */
static int64_t first_rows(int64_t rows)
{
    const int64_t half = (rows + 1) / 2, most = min64(rows - 8 / REE_NV, REE_MR);
    return rows <= REE_MR ? rows : most < half ? half : most;
}

static void few_rows(const block_t *s)
{
    const ree_matmul_args *g = s->g;
    const int64_t rows = s->r1 - s->r0, first = first_rows(rows), second = rows - first;
    for (int64_t k0 = 0; k0 < g->k; k0 += REE_CHUNK)
        pack_a(s, s->a_block + rows * k0 / REE_CHUNK * TILE_A_ROW, k0, min64(g->k - k0, REE_CHUNK));
    tile_args t = {.c_row = g->c_row, .b_panel = g->k * REE_NR};
    for (int64_t c = s->c0, end; c < s->c1; c = end) {
        int64_t panels;
        const tile_function tile = few_tile(s, first, c, &panels);
        const int bf16 = g->b_packed == REE_PACKED_BF16 && c % REE_NR == 0;
        end = min64(s->c1, c / REE_NR * REE_NR + panels * REE_NR);
        for (int64_t k0 = 0; k0 == 0 || k0 < g->k; k0 += REE_CHUNK) {
            t.k_count = min64(g->k - k0, REE_CHUNK);
            t.flags = tile_flags(g, k0, t.k_count);
            t.a = s->a_block + rows * k0 / REE_CHUNK * TILE_A_ROW;
            t.c = g->c + s->r0 * g->c_row + c;
            if (bf16)
                t.b_bf16 = bf16_chunk(s, c, k0);
            else
                t.b = panel_chunk(s, c, end - c, k0, t.k_count);
            tile(&t, end - c);
            if (second) { /* the panel's chunk is in the cache now */
                t.a += first * TILE_A_ROW;
                t.c += first * t.c_row;
                (bf16 ? far_bf16_tiles : tiles)[second](&t, end - c);
            }
        }
    }
    epilogue(s, s->c0, s->c1);
}

/* -- entry --------------------------------------------------------------------------------- */

void ree_matmul(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_matmul_args *g = args;
    block_t s = {.g = g, .c0 = c0, .c1 = c1, .b_block = scratch};
    s.a_block = s.b_block + b_block_floats(g->b_packed);
    s.rest = (char *)scratch + ree_matmul_scratch_bytes(r1 - r0, g->k, g->b_packed);
    while (r0 < r1) {
        s.r0 = r0;
        s.r1 = g->b_packed ? r1 : min64(r1, r0 - r0 % g->m + g->m);
        s.b = g->b_packed ? 0 : (const float *)g->b + batch_offset(g, g->b_batch, r0);
        if (s.r1 - s.r0 <= FEW_ROWS)
            few_rows(&s);
        else
            many_rows(&s);
        r0 = s.r1;
    }
}
