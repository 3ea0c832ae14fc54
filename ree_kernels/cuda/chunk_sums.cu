/* Totals of dots whose chunk sums were computed by different blocks: added in the order of the chunks, from +0. */
#include "ree.cuh"
#include "epilogue.cuh"

struct ree_chunk_sums_args {
    const f32 *sums; /* [chunks][rows][columns] */
    i64 chunks, rows, columns;
    ree_epilogue_args e;
};

REE_KERNEL(ree_chunk_sums, ree_chunk_sums_args, 256)
{
    const i64 count = a.rows * a.columns, element = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= count)
        return;
    f32 total = 0.0f;
#pragma unroll 8
    for (i64 chunk = 0; chunk < a.chunks; chunk++)
        total = f32_add(total, a.sums[chunk * count + element]);
    const i64 row = element / a.columns, column = element % a.columns;
    *ree_epilogue_at(a.e, row, column) = ree_epilogue(a.e, row, column, total);
}
