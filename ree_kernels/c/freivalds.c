/* Random linear combinations modulo p = 2^61 - 1.
 *
 * A number below p is three parts of at most 21 bits. A part times a 32-bit number has at most 52 bits, so sums of
 * 2048 such products fit signed 64-bit lanes; then they are reduced and put together. Even and odd columns
 * are multiplied apart, since a lane of 64 bits holds one of each.
 */
#include "freivalds.h"
#include "vec.h"

enum {
    COMBINATIONS = 2,
    PARTS = 3,
    PART_BITS = 21,
    LANES = COMBINATIONS * PARTS,
    ROWS_EXACT = 2048,
    VECTORS = REE_MR >= 14 ? 2 : 1, /* of v at once: as many as there are registers for their sums */
    BLOCK = VECTORS * W,
    ROWS_COPIED = 64,
    JOIN_COLS = 64,
    DIGITS = 8,
    ROWS = COMBINATIONS * DIGITS,
    NEXT_ROWS = 48, /* v's rows lie far apart: fetched so many before they are read */
};

typedef uint64_t unsigned_vl __attribute__((vector_size(W * 4)));

static const uint64_t P = ((uint64_t)1 << 61) - 1;

int64_t ree_fold_block_cols(void) { return BLOCK; }

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Numbers are reduced without branches, so that loops over columns become vector code. 2^61 is 1 modulo p. */

/* A number equal to x modulo p, in 0 .. 2^62 + 2. */
static inline uint64_t positive(int64_t x) { return ((uint64_t)x & P) + (uint64_t)(x >> 61) + P; }

/* x * 2^shift modulo p, below 2^61 + 2^(shift + 3). */
static inline uint64_t shifted(uint64_t x, int shift) { return (x << shift & P) + (x >> (61 - shift)); }

/* x modulo p. */
static inline uint64_t reduce(uint64_t x)
{
    const uint64_t once = (x & P) + (x >> 61);
    return once >= P ? once - P : once;
}

REE_INLINE vu load_v(const void *v, const int is_i8, int64_t place)
{
    return is_i8 ? vu_load_i8((const int8_t *)v + place) : vu_load((const int32_t *)v + place);
}

/* The sums of a block's columns, even columns of each vector before odd ones. */
typedef int64_t block_sums[LANES][BLOCK];

/* Adds up the block at v over at most ROWS_EXACT rows. */
REE_INLINE void fold_block(const int32_t *parts, const void *v, const int is_i8, int64_t v_row, int64_t rows,
                           block_sums sums)
{
    vl even[VECTORS][LANES], odd[VECTORS][LANES];
#pragma GCC unroll 2
    for (int n = 0; n < VECTORS; n++)
#pragma GCC unroll 6
        for (int lane = 0; lane < LANES; lane++)
            even[n][lane] = odd[n][lane] = (vl){0};
    for (int64_t row = 0; row < rows; row++, parts += LANES) {
        vl low[VECTORS], high[VECTORS];
#pragma GCC unroll 2
        for (int n = 0; n < VECTORS; n++) {
            low[n] = (vl)load_v(v, is_i8, row * v_row + n * W);
            high[n] = (vl)((unsigned_vl)low[n] >> 32);
        }
        for (int64_t byte = 0; byte < BLOCK * (is_i8 ? 1 : 4); byte += 64)
            __builtin_prefetch((const char *)v + (row + NEXT_ROWS) * v_row * (is_i8 ? 1 : 4) + byte);
#pragma GCC unroll 6
        for (int lane = 0; lane < LANES; lane++) {
            const vl part = (vl)vu_set((uint32_t)parts[lane]);
#pragma GCC unroll 2
            for (int n = 0; n < VECTORS; n++) {
                even[n][lane] += vl_mul_halves(low[n], part);
                odd[n][lane] += vl_mul_halves(high[n], part);
            }
        }
    }
#pragma GCC unroll 2
    for (int n = 0; n < VECTORS; n++)
#pragma GCC unroll 6
        for (int lane = 0; lane < LANES; lane++) {
            memcpy(&sums[lane][n * W], &even[n][lane], sizeof(vl));
            memcpy(&sums[lane][n * W + W / 2], &odd[n][lane], sizeof(vl));
        }
}

static __attribute__((noinline)) void fold_i8(const int32_t *parts, const void *v, int64_t v_row, int64_t rows,
                                              block_sums sums)
{
    fold_block(parts, v, 1, v_row, rows, sums);
}

static __attribute__((noinline)) void fold_i32(const int32_t *parts, const void *v, int64_t v_row, int64_t rows,
                                               block_sums sums)
{
    fold_block(parts, v, 0, v_row, rows, sums);
}

/* Rows [row, row + rows) of a block, of which only `cols` columns are there, as a whole one. */
static const void *copy_part(const ree_fold_rows_args *a, int64_t row, int64_t rows, int64_t c, int64_t cols,
                             int32_t *copy)
{
    const int64_t bytes = a->v_is_i8 ? 1 : 4;
    memset(copy, 0, (size_t)(rows * BLOCK * bytes));
    for (int64_t i = 0; i < rows; i++)
        memcpy((char *)copy + i * BLOCK * bytes, (const char *)a->v + ((row + i) * a->v_row + c) * bytes,
               (size_t)(cols * bytes));
    return copy;
}

/* total += a combination's three sums, modulo p. */
static void add_parts(uint64_t *restrict total, int64_t (*sums)[BLOCK])
{
    for (int j = 0; j < BLOCK; j++)
        total[j] = reduce(total[j] + positive(sums[0][j]) + shifted(positive(sums[1][j]), PART_BITS) +
                          shifted(positive(sums[2][j]), 2 * PART_BITS));
}

/* The combinations of a block's columns. */
static void fold_columns(const ree_fold_rows_args *a, int64_t c, int64_t cols, uint64_t (*found)[BLOCK])
{
    block_sums sums;
    uint64_t total[COMBINATIONS][BLOCK] = {{0}};
    int32_t copy[ROWS_COPIED * BLOCK];
    const int64_t at_once = cols == BLOCK ? ROWS_EXACT : ROWS_COPIED;
    for (int64_t row = 0, rows; row < a->rows; row += rows) {
        rows = min64(a->rows - row, at_once);
        const char *v = (const char *)a->v + (row * a->v_row + c) * (a->v_is_i8 ? 1 : 4);
        const void *block = cols == BLOCK ? v : copy_part(a, row, rows, c, cols, copy);
        (a->v_is_i8 ? fold_i8 : fold_i32)(a->parts + row * LANES, block, cols == BLOCK ? a->v_row : BLOCK, rows, sums);
        for (int i = 0; i < COMBINATIONS; i++)
            add_parts(total[i], sums + i * PARTS);
    }
    for (int i = 0; i < COMBINATIONS; i++)
        for (int j = 0; j < BLOCK; j++)
            found[i][j] = total[i][j / W * W + j % 2 * (W / 2) + j % W / 2];
}

/* The bytes of numbers, lowest first, each in a row of its own. */
static void write_digits(uint8_t *to, int64_t to_row, const uint64_t *from, int64_t cols)
{
    for (int d = 0; d < DIGITS; d++)
        for (int64_t j = 0; j < cols; j++)
            to[d * to_row + j] = (uint8_t)(from[j] >> 8 * d);
}

void ree_fold_rows(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_fold_rows_args *a = args;
    (void)r0, (void)r1, (void)scratch;
    uint64_t found[COMBINATIONS][BLOCK];
    for (int64_t c = c0, cols; c < c1; c += cols) {
        const int64_t split = c / a->digit_cols, until = min64(c1, (split + 1) * a->digit_cols);
        cols = min64(until - c, BLOCK);
        fold_columns(a, c, cols, found);
        for (int i = 0; i < COMBINATIONS; i++) {
            memcpy(a->out + i * a->cols + c, found[i], (size_t)cols * sizeof **found);
            if (a->digits)
                write_digits(a->digits + (split * ROWS + DIGITS * i) * a->cols + c, a->cols, found[i], cols);
        }
    }
}

/* joined[j] = the sum over four d of 256^d * sums[d, j], below 2^57 in size. */
static void join_four(const int32_t *sums, int64_t sums_row, int64_t cols, int64_t *restrict joined)
{
    for (int64_t j = 0; j < cols; j++)
        joined[j] = sums[j] + 256 * (sums[sums_row + j] + 256 * (sums[2 * sums_row + j] +
                                                                256 * (int64_t)sums[3 * sums_row + j]));
}

void ree_join_digits(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_join_digits_args *a = args;
    (void)r0, (void)r1, (void)scratch;
    for (int64_t c = c0, cols; c < c1; c += cols) {
        cols = min64(c1 - c, JOIN_COLS);
        for (int i = 0; i < COMBINATIONS; i++) {
            uint64_t *const out = a->out + i * a->cols + c;
            memset(out, 0, (size_t)cols * sizeof *out);
            for (int64_t s = 0; s < a->splits; s++) {
                int64_t low[JOIN_COLS], high[JOIN_COLS];
                const int32_t *sums = a->sums + (s * ROWS + i * DIGITS) * a->cols + c;
                join_four(sums, a->cols, cols, low);
                join_four(sums + 4 * a->cols, a->cols, cols, high);
                for (int64_t j = 0; j < cols; j++)
                    out[j] = reduce(out[j] + positive(low[j]) + shifted(positive(high[j]), 32));
            }
        }
    }
}
