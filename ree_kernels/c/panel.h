/* Packing: copies of operand blocks in the layout that dot_tile reads. */
#ifndef REE_PANEL_H
#define REE_PANEL_H

#include "vec.h"

/* panel[k][j] = source[k * source_k + j * source_col] for j < cols, else 0; REE_NR columns. */
REE_INLINE void pack_panel(float *restrict panel, const float *restrict source, int64_t source_k, int64_t source_col,
                           int64_t k_count, int64_t cols)
{
    if (source_col == 1 && cols == REE_NR) {
        for (int64_t k = 0; k < k_count; k++)
            for (int v = 0; v < REE_NV; v++)
                vf_store(panel + k * REE_NR + v * W, vf_load(source + k * source_k + v * W));
        return;
    }
    for (int64_t k = 0; k < k_count; k++) {
        for (int64_t j = 0; j < cols; j++)
            panel[k * REE_NR + j] = source[k * source_k + j * source_col];
        for (int64_t j = cols; j < REE_NR; j++)
            panel[k * REE_NR + j] = 0.0f;
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
