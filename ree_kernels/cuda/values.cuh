/* The instructions of element programs on one value, named TYPE_instruction: what ree/element/cuda.py prints. */
#ifndef REE_VALUES_CUH
#define REE_VALUES_CUH

/* Integers wrap: all but division goes through the unsigned type. b outside 0..bits-1 shifts everything out. */
#define REE_INTEGER(T, U, bits)                                                                                        \
    REE_INLINE T T##_add(T a, T b) { return static_cast<T>(static_cast<U>(a) + static_cast<U>(b)); }                   \
    REE_INLINE T T##_sub(T a, T b) { return static_cast<T>(static_cast<U>(a) - static_cast<U>(b)); }                   \
    REE_INLINE T T##_mul(T a, T b) { return static_cast<T>(static_cast<U>(a) * static_cast<U>(b)); }                   \
    REE_INLINE T T##_div(T a, T b) { return ree_div<T>(a, b); }                                                        \
    REE_INLINE T T##_rem(T a, T b) { return ree_rem<T>(a, b); }                                                        \
    REE_INLINE T T##_neg(T a) { return static_cast<T>(U(0) - static_cast<U>(a)); }                                     \
    REE_INLINE T T##_abs(T a) { return a < T(0) ? T##_neg(a) : a; }                                                    \
    REE_INLINE T T##_min(T a, T b) { return a < b ? a : b; }                                                           \
    REE_INLINE T T##_max(T a, T b) { return a > b ? a : b; }                                                           \
    REE_INLINE T T##_and(T a, T b) { return a & b; }                                                                   \
    REE_INLINE T T##_or(T a, T b) { return a | b; }                                                                    \
    REE_INLINE T T##_xor(T a, T b) { return a ^ b; }                                                                   \
    REE_INLINE T T##_not(T a) { return ~a; }                                                                           \
    REE_INLINE T T##_shl(T a, T b)                                                                                     \
    {                                                                                                                  \
        return static_cast<U>(b) < U(bits) ? static_cast<T>(static_cast<U>(a) << static_cast<U>(b)) : T(0);            \
    }                                                                                                                  \
    REE_INLINE T T##_shr(T a, T b)                                                                                     \
    {                                                                                                                  \
        return static_cast<U>(b) < U(bits) ? static_cast<T>(a >> b) : static_cast<T>(a < T(0) ? T(-1) : T(0));         \
    }
REE_INTEGER(i32, u32, 32)
REE_INTEGER(i64, u64, 64)
REE_INTEGER(u32, u32, 32)
REE_INTEGER(u64, u64, 64)
#undef REE_INTEGER

REE_INLINE bool bool_and(bool a, bool b) { return a && b; }
REE_INLINE bool bool_or(bool a, bool b) { return a || b; }
REE_INLINE bool bool_xor(bool a, bool b) { return a != b; }
REE_INLINE bool bool_not(bool a) { return !a; }

/* by value */
#define REE_PLAIN(To, From) REE_INLINE To To##_of_##From(From a) { return static_cast<To>(a); }
#define REE_TRUTH(From) REE_INLINE bool bool_of_##From(From a) { return a != From(0); }
#define REE_FROM_BOOL(To) REE_INLINE To To##_of_bool(bool a) { return a ? To(1) : To(0); }
#define REE_TRUNCATE(To, From) REE_INLINE To To##_of_##From(From a) { return To##_of_float<From>(a); }
#define REE_INTEGERS(row, From) row(i32, From) row(u32, From) row(i64, From) row(u64, From)
REE_INTEGERS(REE_PLAIN, i32)
REE_INTEGERS(REE_PLAIN, u32)
REE_INTEGERS(REE_PLAIN, i64)
REE_INTEGERS(REE_PLAIN, u64)
REE_INTEGERS(REE_TRUNCATE, f32)
REE_INTEGERS(REE_TRUNCATE, f64)
REE_TRUTH(i32) REE_TRUTH(u32) REE_TRUTH(i64) REE_TRUTH(u64) REE_TRUTH(f32) REE_TRUTH(f64)
REE_FROM_BOOL(i32) REE_FROM_BOOL(u32) REE_FROM_BOOL(i64) REE_FROM_BOOL(u64) REE_FROM_BOOL(f32) REE_FROM_BOOL(f64)
#undef REE_PLAIN
#undef REE_TRUTH
#undef REE_FROM_BOOL
#undef REE_TRUNCATE
#undef REE_INTEGERS

/* the same bits, a NaN made canonical first */
REE_INLINE i32 i32_bitcast_f32(f32 a) { return static_cast<i32>(f32_bits(f32_canonical(a))); }
REE_INLINE u32 u32_bitcast_f32(f32 a) { return f32_bits(f32_canonical(a)); }
REE_INLINE i64 i64_bitcast_f64(f64 a) { return static_cast<i64>(f64_bits(f64_canonical(a))); }
REE_INLINE u64 u64_bitcast_f64(f64 a) { return f64_bits(f64_canonical(a)); }
REE_INLINE f32 f32_bitcast_i32(i32 a) { return f32_of_bits(static_cast<u32>(a)); }
REE_INLINE f32 f32_bitcast_u32(u32 a) { return f32_of_bits(a); }
REE_INLINE f64 f64_bitcast_i64(i64 a) { return f64_of_bits(static_cast<u64>(a)); }
REE_INLINE f64 f64_bitcast_u64(u64 a) { return f64_of_bits(a); }
REE_INLINE u32 u32_bitcast_i32(i32 a) { return static_cast<u32>(a); }
REE_INLINE i32 i32_bitcast_u32(u32 a) { return static_cast<i32>(a); }
REE_INLINE u64 u64_bitcast_i64(i64 a) { return static_cast<u64>(a); }
REE_INLINE i64 i64_bitcast_u64(u64 a) { return static_cast<i64>(a); }
REE_INLINE f32 f32_bitcast_f32(f32 a) { return f32_canonical(a); }
REE_INLINE f64 f64_bitcast_f64(f64 a) { return f64_canonical(a); }

/* -- storage: dtype, what memory holds, the type that a load gives, how it is stored --------------------- */
#define REE_STORAGE(dtype, raw, type, loaded, stored)                                                                  \
    typedef raw dtype##_raw;                                                                                           \
    REE_INLINE type dtype##_load(raw x) { return loaded; }                                                             \
    REE_INLINE raw dtype##_store(type x) { return stored; }
REE_STORAGE(bool, u8, bool, x != 0, static_cast<u8>(x ? 1 : 0))
REE_STORAGE(i8, i8, i32, static_cast<i32>(x), static_cast<i8>(x))
REE_STORAGE(u8, u8, i32, static_cast<i32>(x), static_cast<u8>(x))
REE_STORAGE(i16, i16, i32, static_cast<i32>(x), static_cast<i16>(x))
REE_STORAGE(i32, i32, i32, x, x)
REE_STORAGE(i64, i64, i64, x, x)
REE_STORAGE(u32, u32, u32, x, x)
REE_STORAGE(u64, u64, u64, x, x)
REE_STORAGE(f16, u16, f32, f32_of_f16(x), f16_of_f32(x))
REE_STORAGE(bf16, u16, f32, f32_of_bf16(x), bf16_of_f32(x))
REE_STORAGE(f32, f32, f32, x, f32_canonical(x))
REE_STORAGE(f64, f64, f64, x, f64_canonical(x))
#undef REE_STORAGE

/* An index into an axis: clamped into 0 .. extent-1; the status is set where that changes it. */
REE_INLINE i64 ree_bound(i64 index, i64 extent, i64 *status)
{
    if (static_cast<u64>(index) < static_cast<u64>(extent))
        return index;
    *reinterpret_cast<volatile i64 *>(status) = 1;
    return index < 0 || extent <= 0 ? 0 : extent - 1;
}

#endif
