/* Stores of four results of a row, by one instruction where they lie so. Included after epilogue.cuh. */
#ifndef REE_FOURS_CUH
#define REE_FOURS_CUH

struct alignas(4 * sizeof(ree_epilogue_raw) < 16 ? 4 * sizeof(ree_epilogue_raw) : 16) ree_four {
    ree_epilogue_raw v[4];
};

REE_INLINE void ree_store_four(const ree_epilogue_args &e, i64 row, i64 column, i64 columns, const ree_four &four)
{
#ifdef REE_EPILOGUE_DENSE
    ree_epilogue_raw *const place = ree_epilogue_at(e, row, column);
    if (column + 4 <= columns && reinterpret_cast<u64>(place) % alignof(ree_four) == 0) {
        *reinterpret_cast<ree_four *>(place) = four;
        return;
    }
#endif
#pragma unroll
    for (int c = 0; c < 4; c++)
        if (column + c < columns)
            *ree_epilogue_at(e, row, column + c) = four.v[c];
}

#endif
