/* What a kernel that computes rows x columns of float32 does with each result: included by those that can host others.
 *
 * ree_epilogue(e, row, column, value): the element as it is stored; ree_epilogue_at(e, row, column): where. With
 * REE_EPILOGUE_DENSE columns of a row lie side by side. A text before this one may define all of it (REE_EPILOGUE;
 * printed by ree/element/cuda.py from the operators that follow); else results are stored as they are.
 */
#ifndef REE_EPILOGUE_CUH
#define REE_EPILOGUE_CUH

#ifndef REE_EPILOGUE
#define REE_EPILOGUE_DENSE
typedef f32 ree_epilogue_raw;
struct ree_epilogue_args {
    f32 *out;
    i64 out_row; /* elements from row to row */
};
REE_INLINE f32 ree_epilogue(const ree_epilogue_args &, i64, i64, f32 value) { return f32_canonical(value); }
REE_INLINE f32 *ree_epilogue_at(const ree_epilogue_args &e, i64 row, i64 column)
{
    return e.out + row * e.out_row + column;
}
#endif

#endif
