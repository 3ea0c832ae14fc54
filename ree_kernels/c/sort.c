/* Stable argsort and top-k selection: keys become unsigned integers whose order is the
 * wanted one (NaN above everything, -0 equal to +0, all bits flipped to descend), items
 * (key, index) are sorted by least-significant-digit radix, which is stable and linear. */
#include "sort.h"

#include "dtype.h"

enum {
    BLOCK = 512,           /* keys made at a time */
    INSERTION_MAX = 48,    /* below it insertion beats clearing radix histograms */
    SELECT_BITS = 11       /* leading key bits that top-k counts */
};

/* ---- keys ------------------------------------------------------------------------- */

static inline uint32_t key_of_f32(uint32_t u)
{
    uint32_t magnitude = u & 0x7fffffffu;
    uint32_t ordered = u >> 31 ? ~u : u | 0x80000000u;
    ordered = magnitude == 0 ? 0x80000000u : ordered;
    return magnitude > 0x7f800000u ? 0xffffffffu : ordered;
}

static inline uint32_t key_of_f16(uint32_t u)
{
    uint32_t magnitude = u & 0x7fffu;
    uint32_t ordered = u >> 15 ? ~u & 0xffffu : u | 0x8000u;
    ordered = magnitude == 0 ? 0x8000u : ordered;
    return magnitude > 0x7c00u ? 0xffffu : ordered;
}

static inline uint64_t key_of_f64(uint64_t u)
{
    uint64_t magnitude = u & 0x7fffffffffffffffu;
    uint64_t ordered = u >> 63 ? ~u : u | 0x8000000000000000u;
    ordered = magnitude == 0 ? 0x8000000000000000u : ordered;
    return magnitude > 0x7ff0000000000000u ? ~(uint64_t)0 : ordered;
}

/* keys[i] of elements x[i * step], i < n, for dtypes of at most 32 bits. */
static void keys_narrow(const ree_sort_args *a, const char *x, int64_t n, uint32_t flip, uint32_t *keys)
{
    const int64_t step = a->x_step;
#define FILL(TYPE, KEY)                                      \
    {                                                        \
        const TYPE *p = (const TYPE *)x;                     \
        for (int64_t i = 0; i < n; i++) {                    \
            uint32_t v = (uint32_t)p[i * step];              \
            keys[i] = (KEY) ^ flip;                          \
        }                                                    \
    }                                                        \
    break
    switch (a->dtype) {
        case REE_BOOL: FILL(uint8_t, (uint32_t)(v != 0));
        case REE_U8: FILL(uint8_t, v);
        case REE_I8: FILL(uint8_t, v ^ 0x80u);
        case REE_I16: FILL(uint16_t, v ^ 0x8000u);
        case REE_F16: FILL(uint16_t, key_of_f16(v));
        case REE_BF16: FILL(uint16_t, key_of_f32(v << 16));
        case REE_U32: FILL(uint32_t, v);
        case REE_I32: FILL(uint32_t, v ^ 0x80000000u);
        default: FILL(uint32_t, key_of_f32(v));
    }
#undef FILL
}

static void keys_wide(const ree_sort_args *a, const char *x, int64_t n, uint64_t flip, uint64_t *keys)
{
    const uint64_t *p = (const uint64_t *)x;
    const int64_t step = a->x_step;
    if (a->dtype == REE_F64) {
        for (int64_t i = 0; i < n; i++) keys[i] = key_of_f64(p[i * step]) ^ flip;
    } else {
        uint64_t sign = a->dtype == REE_I64 ? 0x8000000000000000u : 0;
        for (int64_t i = 0; i < n; i++) keys[i] = p[i * step] ^ sign ^ flip;
    }
}

/* Bits that a key of this dtype may have set. */
static int key_bits(int64_t dtype)
{
    int64_t bytes = ree_dtype_bytes(dtype);
    return dtype == REE_BF16 ? 32 : (int)(8 * bytes);
}

/* ---- items: narrow packs (key << 32 | index) in one word, wide is a pair ------------- */

typedef uint64_t narrow_item;
typedef struct {
    uint64_t key, index;
} wide_item;

#define NARROW_MAX ((int64_t)1 << 32) /* rows too long for a 32-bit index use wide items */

static inline narrow_item narrow_make(uint32_t key, int64_t i) { return (uint64_t)key << 32 | (uint64_t)i; }
static inline uint64_t narrow_key(narrow_item v) { return v >> 32; }
static inline int64_t narrow_index(narrow_item v) { return (int64_t)(v & 0xffffffffu); }
static inline wide_item wide_make(uint64_t key, int64_t i) { return (wide_item){key, (uint64_t)i}; }
static inline uint64_t wide_key(wide_item v) { return v.key; }
static inline int64_t wide_index(wide_item v) { return (int64_t)v.index; }

/* Sorts items by key, stably; returns the array (items or spare) that holds the result. */
#define DEFINE_SORT(W, BYTES)                                                                   \
    static void W##_insertion(W##_item *items, int64_t n) {                                     \
        for (int64_t i = 1; i < n; i++) {                                                       \
            W##_item item = items[i];                                                           \
            int64_t j = i;                                                                      \
            for (; j > 0 && W##_key(items[j - 1]) > W##_key(item); j--) items[j] = items[j - 1]; \
            items[j] = item;                                                                    \
        }                                                                                       \
    }                                                                                           \
                                                                                                \
    static W##_item *W##_sort(W##_item *items, W##_item *spare, int64_t n, int bits) {          \
        if (n <= INSERTION_MAX) {                                                               \
            W##_insertion(items, n);                                                            \
            return items;                                                                       \
        }                                                                                       \
        int64_t count[BYTES][256];                                                              \
        int digits = (bits + 7) / 8;                                                            \
        memset(count, 0, (size_t)digits * sizeof count[0]);                                     \
        for (int64_t i = 0; i < n; i++) {                                                       \
            uint64_t key = W##_key(items[i]);                                                   \
            for (int d = 0; d < digits; d++) count[d][key >> (8 * d) & 255]++;                  \
        }                                                                                       \
        for (int d = 0; d < digits; d++) {                                                      \
            int64_t *next = count[d];                                                           \
            if (next[W##_key(items[0]) >> (8 * d) & 255] == n) continue; /* one digit: sorted */ \
            int64_t first = 0;                                                                  \
            for (int v = 0; v < 256; v++) {                                                     \
                int64_t size = next[v];                                                         \
                next[v] = first;                                                                \
                first += size;                                                                  \
            }                                                                                   \
            for (int64_t i = 0; i < n; i++)                                                     \
                spare[next[W##_key(items[i]) >> (8 * d) & 255]++] = items[i];                   \
            W##_item *swap = items;                                                             \
            items = spare;                                                                      \
            spare = swap;                                                                       \
        }                                                                                       \
        return items;                                                                           \
    }

DEFINE_SORT(narrow, 4)
DEFINE_SORT(wide, 8)

/* ---- keys of a row, narrow or wide, as 64-bit numbers -------------------------------- */

typedef struct {
    const ree_sort_args *a;
    const char *x;
    int bits;
    uint64_t flip;
} row_keys;

static row_keys row_open(const ree_sort_args *a, int64_t row)
{
    row_keys keys;
    keys.a = a;
    keys.x = (const char *)a->x + row * a->x_row * ree_dtype_bytes(a->dtype);
    keys.bits = key_bits(a->dtype);
    keys.flip = !a->descending ? 0 : keys.bits == 64 ? ~(uint64_t)0 : ((uint64_t)1 << keys.bits) - 1;
    return keys;
}

/* Keys of elements [i, i + n), n <= BLOCK. */
static void row_block(const row_keys *row, int64_t i, int64_t n, uint64_t *keys)
{
    const char *x = row->x + i * row->a->x_step * ree_dtype_bytes(row->a->dtype);
    if (row->bits == 64) {
        keys_wide(row->a, x, n, row->flip, keys);
        return;
    }
    uint32_t narrow[BLOCK];
    keys_narrow(row->a, x, n, (uint32_t)row->flip, narrow);
    for (int64_t j = 0; j < n; j++) keys[j] = narrow[j];
}

/* Largest leading key part such that at least k keys have it or a smaller one. */
static uint64_t select_cut(const row_keys *row, int64_t n, int64_t k, int shift)
{
    int64_t count[2][1 << SELECT_BITS]; /* two, so that equal neighbours do not wait for each other */
    memset(count, 0, sizeof count);
    uint64_t keys[BLOCK];
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t size = n - i < BLOCK ? n - i : BLOCK;
        row_block(row, i, size, keys);
        for (int64_t j = 0; j < size; j++) count[j & 1][keys[j] >> shift]++;
    }
    int64_t seen = 0;
    uint64_t cut = 0;
    for (;; cut++) {
        seen += count[0][cut] + count[1][cut];
        if (seen >= k) return cut;
    }
}

/* Sorts the items whose leading key part is at most `cut` and stores positions [c0, c1). */
#define DEFINE_ROW(W)                                                                                  \
    static void W##_row(const row_keys *row, int64_t n, int shift, uint64_t cut, int64_t c0, int64_t c1, \
                        int64_t *out, void *scratch) {                                                 \
        W##_item *items = scratch;                                                                     \
        int64_t kept = 0;                                                                              \
        uint64_t keys[BLOCK];                                                                          \
        for (int64_t i = 0; i < n; i += BLOCK) {                                                       \
            int64_t size = n - i < BLOCK ? n - i : BLOCK;                                              \
            row_block(row, i, size, keys);                                                             \
            for (int64_t j = 0; j < size; j++) {                                                       \
                items[kept] = W##_make(keys[j], i + j);                                                \
                kept += keys[j] >> shift <= cut;                                                       \
            }                                                                                          \
        }                                                                                              \
        W##_item *sorted = W##_sort(items, items + n + 1, kept, row->bits);                            \
        for (int64_t j = c0; j < c1; j++) out[j] = W##_index(sorted[j]);                               \
    }

DEFINE_ROW(narrow)
DEFINE_ROW(wide)

static void sort_row(const ree_sort_args *a, int64_t r, int shift, uint64_t cut, int64_t c0, int64_t c1, void *scratch)
{
    row_keys row = row_open(a, r);
    int64_t *out = a->out + r * a->out_row;
    if (row.bits == 64 || a->n >= NARROW_MAX)
        wide_row(&row, a->n, shift, cut, c0, c1, out, scratch);
    else
        narrow_row(&row, a->n, shift, cut, c0, c1, out, scratch);
}

int64_t ree_sort_scratch_bytes(int64_t n, int64_t dtype)
{
    int wide = key_bits(dtype) == 64 || n >= NARROW_MAX;
    return 2 * (n + 1) * (int64_t)(wide ? sizeof(wide_item) : sizeof(narrow_item));
}

void ree_argsort(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_sort_args *a = args;
    for (int64_t r = r0; r < r1; r++) sort_row(a, r, 0, ~(uint64_t)0, c0, c1, scratch);
}

/* The first k positions of the stable argsort. */
void ree_argtopk(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_sort_args *a = args;
    if (c1 <= c0) return;
    for (int64_t r = r0; r < r1; r++) {
        row_keys row = row_open(a, r);
        int shift = row.bits > SELECT_BITS ? row.bits - SELECT_BITS : 0;
        sort_row(a, r, shift, select_cut(&row, a->n, a->k, shift), c0, c1, scratch);
    }
}
