/* Elements as unsigned integers that have the order of the elements, and the numbers of their dtypes. */
#ifndef REE_KEYS_CUH
#define REE_KEYS_CUH

/* positions in `DType` of ree/types.py */
enum { DTYPE_BOOL = 0, DTYPE_U8 = 2, DTYPE_I32 = 4, DTYPE_I64 = 5, DTYPE_F32 = 10 };

REE_INLINE u32 ree_key_of_i32(u32 bits) { return bits ^ 0x80000000u; }
REE_INLINE u64 ree_key_of_i64(u64 bits) { return bits ^ 0x8000000000000000ull; }

/* NaN is greatest, -0 equals +0. */
REE_INLINE u32 ree_key_of_f32(u32 bits)
{
    const u32 size = bits & 0x7fffffffu;
    const u32 key = size == 0 || bits >> 31 == 0 ? size | 0x80000000u : ~bits;
    return size > 0x7f800000u ? 0xffffffffu : key;
}

#endif
