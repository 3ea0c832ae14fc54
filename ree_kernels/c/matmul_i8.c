/* Matrix product of bytes: blocks, packing and the choice of way and register tile.
 *
 * The loops are those of matmul.c. Many rows: chunks of k outermost, then panels of B, then register tiles of A's
 * rows; a panel's chunk stays in L1, the chunk of A streams from L2, sums wait in C. Few rows: panels outermost, so
 * that packed B is read once, front to back.
 */
#include "matmul_i8.h"
#include "panel_i8.h"

enum {
    CHUNK = 1024,              /* k's of one tile call */
    I8_A_ROW = CHUNK / 4 + 16, /* words between rows of a packed chunk of A: rows far apart share few cache sets */
    ROWS_MAX = 14,
    FEW_AHEAD_BYTES = 12 << 10, /* where B comes from memory, once: what a core must ask for to keep it busy */
};

/* One chunk: C = before * factor + the products of so many steps of A's rows and of a panel. */
typedef struct {
    const uint32_t *a;
    const int8_t *b;
    int64_t ahead;      /* bytes of B to fetch into the first cache before they are read */
    const int8_t *next; /* memory to fetch into the second cache, next_step bytes for each step */
    int64_t next_step;
    int32_t *c;
    int64_t c_row;
    const int32_t *before; /* for the first chunk the sums of B's columns, then C */
    int64_t before_row;
    uint32_t factor;
    int64_t steps;
} tile_i8_args;

typedef struct {
    int64_t rows, words; /* of a tile; words of A for each step */
    int flips_signed, flips_unsigned;
    void (*tiles[ROWS_MAX + 1])(const tile_i8_args *);
} i8_way;

#define I8_WAY pairs
#include "tile_i8.h"
#undef I8_WAY
#if defined(I8_HAS_DOT)
#define I8_WAY dot
#include "tile_i8.h"
#undef I8_WAY
#endif

static const i8_way *best_way(void)
{
#if defined(I8_HAS_DOT)
    if (i8_cpu_has_dot())
        return &way_dot;
#endif
    return &way_pairs;
}

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t panels_of(int64_t n) { return (n + I8_NR - 1) / I8_NR; }
static inline int64_t chunks_of(int64_t k) { return k <= CHUNK ? 1 : (k + CHUNK - 1) / CHUNK; }

int64_t ree_panel_i8_cols(void) { return I8_NR; }
int64_t ree_tile_i8_rows(void) { return best_way()->rows; }

int64_t ree_matmul_i8_scratch_bytes(int64_t rows, int64_t k)
{
    const int64_t few = min64(rows, ROWS_MAX) * chunks_of(k);
    return (few > rows ? few : rows) * I8_A_ROW * I8_WORDS_pairs * (int64_t)sizeof(uint32_t);
}

/* -- packing B -------------------------------------------------------------------------- */

/* One step more than the panels: a box that starts within a panel reads past its end. */
int64_t ree_pack_b_i8_bytes(int64_t n, int64_t k) { return panels_of(n) * i8_panel_bytes(k) + I8_STEP_BYTES; }

void ree_pack_b_i8_box(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    (void)r0, (void)r1, (void)scratch;
    const ree_pack_b_i8_args *p = args;
    for (int64_t c = c0; c < c1; c += I8_NR)
        pack_panel_i8(p->packed + c / I8_NR * i8_panel_bytes(p->k), p->source + c * p->source_col, p->source_k,
                      p->source_col, p->k, min64(c1 - c, I8_NR));
    if (c1 == p->n) /* the padding behind the last panel is its box's */
        memset(p->packed + panels_of(p->n) * i8_panel_bytes(p->k), 0, I8_STEP_BYTES);
}

/* -- the parts of a product --------------------------------------------------------------- */

typedef struct {
    const ree_matmul_i8_args *g;
    const i8_way *way;
    int64_t r0, r1, c0, c1;
    uint32_t *a_block; /* packed rows of A: one chunk, or (few rows) all chunks one after another */
} block_t;

static int flips(const block_t *s) { return s->g->a_unsigned ? s->way->flips_unsigned : s->way->flips_signed; }

static void pack_a(const block_t *s, uint32_t *to, int64_t k0, int64_t k_count)
{
    const ree_matmul_i8_args *g = s->g;
    const uint32_t flip = flips(s) ? 0x80808080u : 0;
    for (int64_t r = s->r0; r < s->r1; r++, to += I8_A_ROW * s->way->words)
        if (s->way->words == 1)
            pack_row_dot_i8(to, g->a + r * g->a_row + k0, k_count, flip);
        else
            pack_row_pairs_i8(to, g->a + r * g->a_row + k0, k_count, g->a_unsigned ? 0 : 0x00800080u);
}

/* The arguments of tiles over the chunk at k0, at the block's first row and column c of a panel. */
static tile_i8_args tile_of(const block_t *s, int64_t c, int64_t k0)
{
    const ree_matmul_i8_args *g = s->g;
    const int8_t *panel = g->b + c / I8_NR * i8_panel_bytes(g->k) + c % I8_NR * 4;
    tile_i8_args t = {.a = s->a_block, .b = panel + (1 + k0 / 4) * I8_STEP_BYTES};
    t.c = g->c + s->r0 * g->c_row + c;
    t.c_row = g->c_row;
    t.before = k0 ? t.c : (const int32_t *)panel;
    t.before_row = k0 ? t.c_row : 0;
    t.factor = k0 ? 1 : !flips(s) ? 0 : g->a_unsigned ? 128 : -128u;
    t.steps = i8_steps(min64(g->k - k0, CHUNK));
    return t;
}

static void run_tile(const block_t *s, const tile_i8_args *t, int64_t rows, int64_t cols)
{
    if (cols == I8_NR) {
        s->way->tiles[rows](t);
        return;
    }
    int32_t part[ROWS_MAX * I8_NR] = {0}; /* a tile is always whole */
    tile_i8_args own = *t;
    own.c = part;
    own.c_row = I8_NR;
    if (t->before == t->c) {
        for (int64_t i = 0; i < rows; i++)
            memcpy(part + i * I8_NR, t->c + i * t->c_row, (size_t)cols * sizeof *part);
        own.before = part;
        own.before_row = I8_NR;
    }
    s->way->tiles[rows](&own);
    for (int64_t i = 0; i < rows; i++)
        memcpy(t->c + i * t->c_row, part + i * I8_NR, (size_t)cols * sizeof *part);
}

/* Columns of the panel from c on, within the block. */
static int64_t panel_end(const block_t *s, int64_t c) { return min64(s->c1, c / I8_NR * I8_NR + I8_NR); }

/* Tiles of nearly equal rows, each of which fetches its share of the panel's chunk that comes next. */
static void panel_of_many(const block_t *s, int64_t c, int64_t cols, int64_t k0)
{
    const int64_t rows = s->r1 - s->r0, count = (rows + s->way->rows - 1) / s->way->rows;
    tile_i8_args t = tile_of(s, c, k0);
    t.next_step = (I8_STEP_BYTES + count - 1) / count;
    t.next = t.b + i8_panel_bytes(s->g->k);
    for (int64_t i = 0, r = 0; i < count; i++) {
        const int64_t end = rows * (i + 1) / count;
        run_tile(s, &t, end - r, cols);
        t.a += (end - r) * I8_A_ROW * s->way->words;
        t.c += (end - r) * t.c_row;
        t.before += (end - r) * t.before_row;
        t.next += t.steps * t.next_step;
        r = end;
    }
}

static void many_rows(const block_t *s)
{
    for (int64_t k0 = 0; k0 == 0 || k0 < s->g->k; k0 += CHUNK) {
        pack_a(s, s->a_block, k0, min64(s->g->k - k0, CHUNK));
        for (int64_t c = s->c0, end; c < s->c1; c = end) {
            end = panel_end(s, c);
            panel_of_many(s, c, end - c, k0);
        }
    }
}

static void few_rows(const block_t *s)
{
    const int64_t rows = s->r1 - s->r0, chunk_words = rows * I8_A_ROW * s->way->words, k = s->g->k;
    for (int64_t k0 = 0; k0 < k; k0 += CHUNK)
        pack_a(s, s->a_block + k0 / CHUNK * chunk_words, k0, min64(k - k0, CHUNK));
    for (int64_t c = s->c0, end; c < s->c1; c = end) {
        end = panel_end(s, c);
        for (int64_t k0 = 0; k0 == 0 || k0 < k; k0 += CHUNK) {
            tile_i8_args t = tile_of(s, c, k0);
            t.a += k0 / CHUNK * chunk_words;
            t.next = t.b;
            t.ahead = FEW_AHEAD_BYTES;
            run_tile(s, &t, rows, end - c);
        }
    }
}

/* -- entry --------------------------------------------------------------------------------- */

static void product(const i8_way *way, const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const block_t s = {.g = args, .way = way, .r0 = r0, .r1 = r1, .c0 = c0, .c1 = c1, .a_block = scratch};
    if (r0 >= r1)
        return;
    if (r1 - r0 <= way->rows)
        few_rows(&s);
    else
        many_rows(&s);
}

void ree_matmul_i8(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    product(best_way(), args, r0, r1, c0, c1, scratch);
}

void ree_matmul_i8_pairs(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    product(&way_pairs, args, r0, r1, c0, c1, scratch);
}
