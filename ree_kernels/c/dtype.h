/* Storage dtypes as kernels number them (the order of ree/types.py) and their NaN. */
#ifndef REE_DTYPE_H
#define REE_DTYPE_H

#include <stdint.h>
#include <string.h>

enum {
    REE_BOOL, REE_I8, REE_U8, REE_I16, REE_I32, REE_I64,
    REE_U32, REE_U64, REE_F16, REE_BF16, REE_F32, REE_F64
};

static inline int64_t ree_dtype_bytes(int64_t dtype)
{
    static const int64_t bytes[] = {1, 1, 1, 2, 4, 8, 4, 8, 2, 2, 4, 8};
    return bytes[dtype];
}

/* The value a store leaves: any NaN becomes the canonical one. */
static inline float ree_canonical_f32(float value)
{
    const uint32_t bits = 0x7fc00000u;
    float nan;
    memcpy(&nan, &bits, 4);
    return value != value ? nan : value;
}

static inline double ree_canonical_f64(double value)
{
    const uint64_t bits = 0x7ff8000000000000u;
    double nan;
    memcpy(&nan, &bits, 8);
    return value != value ? nan : value;
}

#endif
