/* Packing for products of bytes: the layouts that tile_i8 reads.
 *
 * A panel of B holds the sums of its I8_NR columns (32 bits each), then, for each step, a word of four k's for each
 * column. k is filled up to whole steps with zeros, and so are missing columns. A row of A holds, for each step, the
 * four bytes (way `dot`), or two words of two 16-bit numbers (way `pairs`): k's 0 and 2, then 1 and 3.
 */
#ifndef REE_PANEL_I8_H
#define REE_PANEL_I8_H

#include "transpose.h"
#include "vec_i8.h"

enum { I8_STEP_BYTES = 4 * I8_NR };

static inline int64_t i8_steps(int64_t k) { return (k + 3) / 4; }
static inline int64_t i8_panel_bytes(int64_t k) { return (i8_steps(k) + 1) * I8_STEP_BYTES; }

/* The first n <= sizeof(vu) bytes at p, then zeros. */
REE_INLINE vu vu_load_bytes(const void *p, int64_t n)
{
    if (n >= (int64_t)sizeof(vu))
        return vu_load(p);
    vu v = {0};
    if (n > 0)
        memcpy(&v, p, (size_t)n);
    return v;
}

/* Steps of a panel from columns of consecutive k's: squares of W words are transposed. */
static void pack_columns_i8(int8_t *to, const int8_t *source, int64_t source_col, int64_t k_count, int64_t cols)
{
    for (int64_t k = 0; k < k_count; k += 4 * W)
        for (int64_t j = 0; j < I8_NR; j += W) {
            vu m[W];
            for (int64_t i = 0; i < W; i++)
                m[i] = j + i < cols ? vu_load_bytes(source + (j + i) * source_col + k, k_count - k) : vu_set(0);
            transpose(m);
            const int64_t steps = i8_steps(k_count - k);
            for (int64_t i = 0; i < W && i < steps; i++)
                vu_store(to + (k / 4 + i) * I8_STEP_BYTES + j * 4, m[i]);
        }
}

typedef int8_t b16 __attribute__((vector_size(16)));
typedef int16_t h8 __attribute__((vector_size(16)));

REE_INLINE b16 b16_load_part(const int8_t *p, int64_t n)
{
    b16 v = {0};
    if (n > 0)
        memcpy(&v, p, (size_t)(n < 16 ? n : 16));
    return v;
}

/* Sixteen columns of a step from four rows. */
REE_INLINE void interleave_rows(int8_t *to, const b16 *row)
{
    const b16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
    const h8 low16 = {0, 8, 1, 9, 2, 10, 3, 11}, high16 = low16 + 4;
    const h8 low01 = (h8)__builtin_shuffle(row[0], row[1], low), high01 = (h8)__builtin_shuffle(row[0], row[1], high);
    const h8 low23 = (h8)__builtin_shuffle(row[2], row[3], low), high23 = (h8)__builtin_shuffle(row[2], row[3], high);
    const h8 words[4] = {
        __builtin_shuffle(low01, low23, low16), __builtin_shuffle(low01, low23, high16),
        __builtin_shuffle(high01, high23, low16), __builtin_shuffle(high01, high23, high16),
    };
    memcpy(to, words, sizeof words);
}

/* Steps of a panel from rows of consecutive columns. */
static void pack_rows_i8(int8_t *to, const int8_t *source, int64_t source_k, int64_t k_count, int64_t cols)
{
    for (int64_t k = 0; k < k_count; k += 4, to += I8_STEP_BYTES)
        for (int64_t j = 0; j < I8_NR; j += 16) {
            b16 row[4];
            const int whole = j + 16 <= cols && k + 4 <= k_count;
            for (int64_t i = 0; i < 4; i++)
                if (whole)
                    memcpy(&row[i], source + (k + i) * source_k + j, 16);
                else
                    row[i] = b16_load_part(source + (k + i) * source_k + j, k + i < k_count ? cols - j : 0);
            interleave_rows(to + j * 4, row);
        }
}

static void pack_strided_i8(int8_t *to, const int8_t *source, int64_t source_k, int64_t source_col, int64_t k_count,
                            int64_t cols)
{
    memset(to, 0, (size_t)(i8_steps(k_count) * I8_STEP_BYTES));
    for (int64_t k = 0; k < k_count; k++)
        for (int64_t j = 0; j < cols; j++)
            to[k / 4 * I8_STEP_BYTES + j * 4 + k % 4] = source[k * source_k + j * source_col];
}

/* A panel from element (k, j) at source[k * source_k + j * source_col], j < cols. */
static void pack_panel_i8(int8_t *panel, const int8_t *source, int64_t source_k, int64_t source_col, int64_t k_count,
                          int64_t cols)
{
    int8_t *const steps = panel + I8_STEP_BYTES;
    if (source_col == 1)
        pack_rows_i8(steps, source, source_k, k_count, cols);
    else if (source_k == 1)
        pack_columns_i8(steps, source, source_col, k_count, cols);
    else
        pack_strided_i8(steps, source, source_k, source_col, k_count, cols);
    static const uint32_t ones[2] = {0x00010001u, 0x00010001u};
    for (int64_t j = 0; j < I8_STEP_BYTES; j += sizeof(vu)) {
        vu sum = vu_set(0);
        for (int64_t s = 0; s < i8_steps(k_count); s++)
            sum = vu_step_pairs(sum, ones, vb_load_pairs(steps + s * I8_STEP_BYTES + j));
        vu_store(panel + j, sum);
    }
}

/* Four bytes of A from k on, zeros behind its end. */
REE_INLINE uint32_t word_i8(const int8_t *row, int64_t k, int64_t k_count)
{
    uint32_t word = 0;
    memcpy(&word, row + k, k_count - k < 4 ? (size_t)(k_count - k) : 4);
    return word;
}

/* A row for the way `dot`; flip: what the bytes of a word are flipped by. */
static void pack_row_dot_i8(uint32_t *to, const int8_t *row, int64_t k_count, uint32_t flip)
{
    for (int64_t s = 0; s < k_count / 4; s++)
        to[s] = word_i8(row, 4 * s, 4 * s + 4) ^ flip;
    if (k_count % 4)
        to[k_count / 4] = word_i8(row, k_count / 4 * 4, k_count) ^ flip;
}

/* Bytes 0 and 2 of a word as 16-bit numbers; sign: 0x00800080, or 0 for unsigned bytes. */
REE_INLINE uint32_t widen_i8(uint32_t word, uint32_t sign)
{
    const uint32_t bytes = word & 0x00ff00ffu;
    return bytes | ((bytes & sign) >> 7) * 0xff00u;
}

/* A row for the way `pairs`. */
static void pack_row_pairs_i8(uint32_t *to, const int8_t *row, int64_t k_count, uint32_t sign)
{
    for (int64_t k = 0; k < k_count; k += 4) {
        const uint32_t word = word_i8(row, k, k_count);
        to[k / 2] = widen_i8(word, sign);
        to[k / 2 + 1] = widen_i8(word >> 8, sign);
    }
}

#endif
