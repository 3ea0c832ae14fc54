/* A square of W x W words transposed in registers.
 *
 * Shuffles stay inside blocks of four words as long as they can: those are one cheap instruction on every
 * instruction set. Then whole blocks move, as often as four doubles to W.
 */
#ifndef REE_TRANSPOSE_H
#define REE_TRANSPOSE_H

#include "vec.h"

enum { BLOCKS = W / 4 };

/* Index vectors of __builtin_shuffle(a, b, .): F(g) lists the four words of result block g; b's begin at W. */
#if W == 16
#define EACH_BLOCK(F) ((vu){F(0), F(1), F(2), F(3)})
#elif W == 8
#define EACH_BLOCK(F) ((vu){F(0), F(1)})
#else
#define EACH_BLOCK(F) ((vu){F(0)})
#endif
#define FOUR(from) (from), (from) + 1, (from) + 2, (from) + 3
#define LOW_WORDS(g) 4 * (g), W + 4 * (g), 4 * (g) + 1, W + 4 * (g) + 1
#define HIGH_WORDS(g) 4 * (g) + 2, W + 4 * (g) + 2, 4 * (g) + 3, W + 4 * (g) + 3
#define LOW_PAIRS(g) 4 * (g), 4 * (g) + 1, W + 4 * (g), W + 4 * (g) + 1
#define HIGH_PAIRS(g) 4 * (g) + 2, 4 * (g) + 3, W + 4 * (g) + 2, W + 4 * (g) + 3
#define EVEN_BLOCKS(g) FOUR(8 * (g))
#define ODD_BLOCKS(g) FOUR(8 * (g) + 4)

/* Rows 4g..4g+3 as four vectors: word 4l + j of these rows is block l of m[4g + j]. */
REE_INLINE void transpose_blocks(vu *m)
{
#pragma GCC unroll 4
    for (int g = 0; g < BLOCKS; g++) {
        vu *r = m + 4 * g;
        const vu low01 = __builtin_shuffle(r[0], r[1], EACH_BLOCK(LOW_WORDS));
        const vu high01 = __builtin_shuffle(r[0], r[1], EACH_BLOCK(HIGH_WORDS));
        const vu low23 = __builtin_shuffle(r[2], r[3], EACH_BLOCK(LOW_WORDS));
        const vu high23 = __builtin_shuffle(r[2], r[3], EACH_BLOCK(HIGH_WORDS));
        r[0] = __builtin_shuffle(low01, low23, EACH_BLOCK(LOW_PAIRS));
        r[1] = __builtin_shuffle(low01, low23, EACH_BLOCK(HIGH_PAIRS));
        r[2] = __builtin_shuffle(high01, high23, EACH_BLOCK(LOW_PAIRS));
        r[3] = __builtin_shuffle(high01, high23, EACH_BLOCK(HIGH_PAIRS));
    }
}

/* m[i] lane l becomes m[l] lane i. */
REE_INLINE void transpose(vu *m)
{
    transpose_blocks(m);
    /* bits of a block's number leave the lanes, lowest first, and enter the number of the vector */
#pragma GCC unroll 2
    for (int width = 1; width < BLOCKS; width *= 2) {
        vu even[W / 2], odd[W / 2];
#pragma GCC unroll 8
        for (int i = 0; i < W / 2; i++) {
            const int j = i % 4, pair = i / 4;
            even[i] = __builtin_shuffle(m[8 * pair + j], m[8 * pair + 4 + j], EACH_BLOCK(EVEN_BLOCKS));
            odd[i] = __builtin_shuffle(m[8 * pair + j], m[8 * pair + 4 + j], EACH_BLOCK(ODD_BLOCKS));
        }
#pragma GCC unroll 8
        for (int i = 0; i < W / 2; i++) {
            m[i] = even[i];
            m[W / 2 + i] = odd[i];
        }
    }
}

#endif
