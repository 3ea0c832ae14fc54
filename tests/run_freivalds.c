/* The kernels of Freivalds' check on the processor that this is compiled for (test_freivalds_product.py).
 *
 * Standard input: rows, columns, whether v is int8, as 64-bit words; parts, int32 [rows, 2, 3]; v [rows, columns];
 * sums of bytes, int32 [32, columns].
 * Standard output: the combinations of v's rows and the joined sums, uint64 [2, columns] each; the bytes of the
 * combinations, uint8 [16, columns]. Boxes have 20 columns.
 */
#include <stdio.h>
#include <stdlib.h>

#include "freivalds.h"

static void *read_bytes(int64_t bytes)
{
    void *memory = malloc((size_t)bytes);
    if (!memory || fread(memory, 1, (size_t)bytes, stdin) != (size_t)bytes)
        exit(2);
    return memory;
}

static void run(ree_kernel kernel, const void *args, int64_t cols)
{
    for (int64_t c = 0; c < cols; c += 20)
        kernel(args, 0, 1, c, c + 20 < cols ? c + 20 : cols, NULL);
}

int main(void)
{
    const int64_t *head = read_bytes(3 * sizeof *head), rows = head[0], cols = head[1];
    const int32_t *parts = read_bytes(rows * 6 * (int64_t)sizeof *parts);
    const void *v = read_bytes(rows * cols * (head[2] ? 1 : 4));
    const int32_t *sums = read_bytes(32 * cols * (int64_t)sizeof *sums);
    uint64_t *out = calloc((size_t)cols, 4 * sizeof *out);
    uint8_t *digits = calloc((size_t)cols, 16);
    if (!out || !digits)
        return 2;
    const ree_fold_rows_args fold = {parts, v, head[2], cols, rows, cols, out, digits, cols};
    const ree_join_digits_args join = {sums, 2, cols, out + 2 * cols};
    run(ree_fold_rows, &fold, cols);
    run(ree_join_digits, &join, cols);
    const size_t bytes = (size_t)cols * 4 * sizeof *out;
    return fwrite(out, 1, bytes, stdout) != bytes || fwrite(digits, 16, (size_t)cols, stdout) != (size_t)cols;
}
