/* Products of bytes on the processor that this is compiled for (test_kernels_matmul_i8.py).
 *
 * Standard input: m, n, k, a_unsigned, by_columns as 64-bit words, A [m, k], then B [k, n], or [n, k] if by_columns.
 * Standard output: C of ree_matmul_i8, then of ree_matmul_i8_pairs, each in boxes of 5 rows x 20 columns.
 */
#include <stdio.h>
#include <stdlib.h>

#include "matmul_i8.h"

static void *allocate(int64_t bytes)
{
    void *memory = aligned_alloc(64, (size_t)(bytes + 64) / 64 * 64);
    if (!memory)
        exit(2);
    return memory;
}

static void *read_bytes(int64_t bytes)
{
    void *memory = allocate(bytes);
    if (fread(memory, 1, (size_t)bytes, stdin) != (size_t)bytes)
        exit(2);
    return memory;
}

int main(void)
{
    const int64_t *head = read_bytes(5 * sizeof *head), m = head[0], n = head[1], k = head[2];
    const int8_t *a = read_bytes(m * k), *b = read_bytes(k * n);
    int8_t *packed = allocate(ree_pack_b_i8_bytes(n, k));
    const ree_pack_b_i8_args pack = {packed, b, n, k, head[4] ? 1 : n, head[4] ? k : 1};
    ree_pack_b_i8_box(&pack, 0, 1, 0, n, NULL);
    int32_t *c = allocate(m * n * (int64_t)sizeof *c);
    const ree_matmul_i8_args args = {a, packed, c, k, n, m, n, k, head[3]};
    void *scratch = allocate(ree_matmul_i8_scratch_bytes(m, k));
    static const ree_kernel ways[] = {ree_matmul_i8, ree_matmul_i8_pairs};
    for (int way = 0; way < 2; way++) {
        for (int64_t r = 0; r < m; r += 5)
            for (int64_t col = 0; col < n; col += 20)
                ways[way](&args, r, r + 5 < m ? r + 5 : m, col, col + 20 < n ? col + 20 : n, scratch);
        if (fwrite(c, sizeof *c, (size_t)(m * n), stdout) != (size_t)(m * n))
            return 2;
    }
    return 0;
}
