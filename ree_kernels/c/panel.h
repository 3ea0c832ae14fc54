/* Packing: copies of operand blocks in the layout that dot_tile reads. */
#ifndef REE_PANEL_H
#define REE_PANEL_H

#include "vec.h"

/* to[k * to_k + j] = from[j * from_j + k] for 4 x 4 elements. */
REE_INLINE void transpose_4x4(float *restrict to, int64_t to_k, const float *restrict from, int64_t from_j)
{
    typedef float v4 __attribute__((vector_size(16)));
    typedef int32_t i4 __attribute__((vector_size(16)));
    v4 a, b, c, d;
    memcpy(&a, from, 16);
    memcpy(&b, from + from_j, 16);
    memcpy(&c, from + 2 * from_j, 16);
    memcpy(&d, from + 3 * from_j, 16);
    const v4 ab_low = __builtin_shuffle(a, b, (i4){0, 4, 1, 5}), ab_high = __builtin_shuffle(a, b, (i4){2, 6, 3, 7});
    const v4 cd_low = __builtin_shuffle(c, d, (i4){0, 4, 1, 5}), cd_high = __builtin_shuffle(c, d, (i4){2, 6, 3, 7});
    a = __builtin_shuffle(ab_low, cd_low, (i4){0, 1, 4, 5});
    b = __builtin_shuffle(ab_low, cd_low, (i4){2, 3, 6, 7});
    c = __builtin_shuffle(ab_high, cd_high, (i4){0, 1, 4, 5});
    d = __builtin_shuffle(ab_high, cd_high, (i4){2, 3, 6, 7});
    memcpy(to, &a, 16);
    memcpy(to + to_k, &b, 16);
    memcpy(to + 2 * to_k, &c, 16);
    memcpy(to + 3 * to_k, &d, 16);
}

/* panel[k][j] = source[k * source_k + j * source_col] for j < cols, else 0; REE_NR columns. */
REE_INLINE void pack_panel(float *restrict panel, const float *restrict source, int64_t source_k, int64_t source_col,
                           int64_t k_count, int64_t cols)
{
    int64_t k = 0;
    if (cols == REE_NR && source_col == 1)
        for (; k < k_count; k++)
            for (int v = 0; v < REE_NV; v++)
                vf_store(panel + k * REE_NR + v * W, vf_load(source + k * source_k + v * W));
    else if (cols == REE_NR && source_k == 1)
        for (; k + 4 <= k_count; k += 4)
            for (int64_t j = 0; j < REE_NR; j += 4)
                transpose_4x4(panel + k * REE_NR + j, REE_NR, source + j * source_col + k, source_col);
    for (; k < k_count; k++) {
        for (int64_t j = 0; j < cols; j++)
            panel[k * REE_NR + j] = source[k * source_k + j * source_col];
        for (int64_t j = cols; j < REE_NR; j++)
            panel[k * REE_NR + j] = 0.0f;
    }
}

typedef uint16_t h8 __attribute__((vector_size(16)));

/* Two vectors of bfloat16 in the order of vf_load_bf16: 4 columns of both. */
REE_INLINE void pack_bf16_4(uint16_t *restrict to, const uint16_t *restrict from)
{
    h8 both;
    memcpy(&both, from, 8);
    memcpy((char *)&both + 8, from + W, 8);
    both = __builtin_shuffle(both, (h8){0, 4, 1, 5, 2, 6, 3, 7});
    memcpy(to, &both, 16);
}

/* The same for 8 k, where k is innermost in the source. */
REE_INLINE void pack_bf16_8x4(uint16_t *restrict to, const uint16_t *restrict from, int64_t source_col)
{
    float words[2][16]; /* k of this half, column */
    for (int64_t j = 0; j < 4; j++) {
        h8 even, odd;
        memcpy(&even, from + j * source_col, 16);
        memcpy(&odd, from + (W + j) * source_col, 16);
        const h8 low = __builtin_shuffle(even, odd, (h8){0, 8, 1, 9, 2, 10, 3, 11});
        const h8 high = __builtin_shuffle(even, odd, (h8){4, 12, 5, 13, 6, 14, 7, 15});
        memcpy(words[0] + 4 * j, &low, 16);
        memcpy(words[1] + 4 * j, &high, 16);
    }
    transpose_4x4((float *)to, REE_NR / 2, words[0], 4);
    transpose_4x4((float *)(to + 4 * REE_NR), REE_NR / 2, words[1], 4);
}

/* As pack_panel, of bfloat16. */
REE_INLINE void pack_panel_bf16(uint16_t *restrict panel, const uint16_t *restrict source, int64_t source_k,
                                int64_t source_col, int64_t k_count, int64_t cols)
{
    int64_t k = 0;
    if (cols == REE_NR && source_col == 1)
        for (; k < k_count; k++)
            for (int64_t v = 0; v < REE_NR; v += 2 * W)
                for (int64_t j = 0; j < W; j += 4)
                    pack_bf16_4(panel + k * REE_NR + v + 2 * j, source + k * source_k + v + j);
    else if (cols == REE_NR && source_k == 1)
        for (; k + 8 <= k_count; k += 8)
            for (int64_t v = 0; v < REE_NR; v += 2 * W)
                for (int64_t j = 0; j < W; j += 4)
                    pack_bf16_8x4(panel + k * REE_NR + v + 2 * j, source + (v + j) * source_col + k, source_col);
    for (; k < k_count; k++)
        for (int64_t v = 0; v < REE_NR; v += 2 * W)
            for (int64_t i = 0; i < 2 * W; i++) {
                const int64_t j = v + i % 2 * W + i / 2;
                panel[k * REE_NR + v + i] = j < cols ? source[k * source_k + j * source_col] : 0;
            }
}

/* A packed panel of bfloat16 as one of floats. */
REE_INLINE void widen_panel(float *restrict panel, const uint16_t *restrict from, int64_t k_count)
{
    for (int64_t at = 0; at < k_count * REE_NR; at += 2 * W) {
        vf v[2];
        vf_load_bf16(v, from + at);
        vf_store(panel + at, v[0]);
        vf_store(panel + at + W, v[1]);
    }
}

/* row[k] = source[k * source_k]. */
REE_INLINE void pack_row(float *restrict row, const float *restrict source, int64_t source_k, int64_t k_count)
{
    if (source_k == 1)
        memcpy(row, source, (size_t)k_count * sizeof *row);
    else
        for (int64_t k = 0; k < k_count; k++)
            row[k] = source[k * source_k];
}

#endif
