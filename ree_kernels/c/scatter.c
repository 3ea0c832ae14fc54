/* Scatter: duplicates take effect in ascending source order, since one thread owns a target. */
#include "scatter.h"

#include "dtype.h"

#define SAME(v) (v)

/* A run of `n` updates: out[i * out_step] op= src[i * src_step]. */
typedef void (*update_run)(void *out, const void *src, int64_t n, int64_t out_step, int64_t src_step);

#define DEFINE_UPDATE(NAME, T, RESULT)                                                                   \
    static void NAME(void *out, const void *src, int64_t n, int64_t out_step, int64_t src_step) {        \
        T *to = out;                                                                                     \
        const T *from = src;                                                                             \
        if (out_step == 1 && src_step == 1) {                                                            \
            for (int64_t i = 0; i < n; i++) {                                                            \
                T a = to[i], b = from[i];                                                                \
                (void)a;                                                                                 \
                to[i] = (RESULT);                                                                        \
            }                                                                                            \
            return;                                                                                      \
        }                                                                                                \
        for (int64_t i = 0; i < n; i++) {                                                                \
            T a = to[i * out_step], b = from[i * src_step];                                              \
            (void)a;                                                                                     \
            to[i * out_step] = (RESULT);                                                                 \
        }                                                                                                \
    }

#define DEFINE_INTEGER(NAME, T, U)                     \
    DEFINE_UPDATE(NAME##_add, T, (T)((U)a + (U)b))     \
    DEFINE_UPDATE(NAME##_mul, T, (T)((U)a * (U)b))     \
    DEFINE_UPDATE(NAME##_min, T, b < a ? b : a)        \
    DEFINE_UPDATE(NAME##_max, T, b > a ? b : a)

/* min and max as element programs have them: NaN if either is, -0 below +0. */
static inline float min_f32(float a, float b)
{
    if (a != a || b != b) return ree_canonical_f32(a + b);
    if (a == b) return __builtin_signbit(a) ? a : b;
    return a < b ? a : b;
}
static inline float max_f32(float a, float b)
{
    if (a != a || b != b) return ree_canonical_f32(a + b);
    if (a == b) return __builtin_signbit(a) ? b : a;
    return a > b ? a : b;
}
static inline double min_f64(double a, double b)
{
    if (a != a || b != b) return ree_canonical_f64(a + b);
    if (a == b) return __builtin_signbit(a) ? a : b;
    return a < b ? a : b;
}
static inline double max_f64(double a, double b)
{
    if (a != a || b != b) return ree_canonical_f64(a + b);
    if (a == b) return __builtin_signbit(a) ? b : a;
    return a > b ? a : b;
}

/* A stored NaN is canonical, whatever the source holds, and a byte that is neither 0 nor 1 is true. */
static inline uint16_t nan_f16(uint16_t a) { return (a & 0x7fff) > 0x7c00 ? 0x7e00 : a; }
static inline uint16_t nan_bf16(uint16_t a) { return (a & 0x7fff) > 0x7f80 ? 0x7fc0 : a; }

DEFINE_UPDATE(set_bool, uint8_t, b != 0)
DEFINE_UPDATE(set_f16, uint16_t, nan_f16(b))
DEFINE_UPDATE(set_bf16, uint16_t, nan_bf16(b))
DEFINE_UPDATE(set_f32, float, ree_canonical_f32(b))
DEFINE_UPDATE(set_f64, double, ree_canonical_f64(b))
DEFINE_UPDATE(set_1, uint8_t, b)
DEFINE_UPDATE(set_2, uint16_t, b)
DEFINE_UPDATE(set_4, uint32_t, b)
DEFINE_UPDATE(set_8, uint64_t, b)
DEFINE_UPDATE(bool_or, uint8_t, (a | b) != 0)
DEFINE_UPDATE(bool_and, uint8_t, a != 0 && b != 0)
DEFINE_INTEGER(u8, uint8_t, uint32_t)
DEFINE_INTEGER(i8, int8_t, uint32_t)
DEFINE_INTEGER(i16, int16_t, uint32_t)
DEFINE_INTEGER(i32, int32_t, uint32_t)
DEFINE_INTEGER(i64, int64_t, uint64_t)
DEFINE_INTEGER(u32, uint32_t, uint32_t)
DEFINE_INTEGER(u64, uint64_t, uint64_t)
DEFINE_UPDATE(f32_add, float, ree_canonical_f32(a + b))
DEFINE_UPDATE(f32_mul, float, ree_canonical_f32(a * b))
DEFINE_UPDATE(f32_min, float, min_f32(a, b))
DEFINE_UPDATE(f32_max, float, max_f32(a, b))
DEFINE_UPDATE(f64_add, double, ree_canonical_f64(a + b))
DEFINE_UPDATE(f64_mul, double, ree_canonical_f64(a * b))
DEFINE_UPDATE(f64_min, double, min_f64(a, b))
DEFINE_UPDATE(f64_max, double, max_f64(a, b))

/* The update of op and dtype: any dtype for set, all but f16 and bf16 else. */
static update_run update_of(int64_t op, int64_t dtype)
{
    static const update_run bools[] = {bool_or, bool_and, bool_and, bool_or};
    static const update_run u8[] = {u8_add, u8_mul, u8_min, u8_max};
    static const update_run i8[] = {i8_add, i8_mul, i8_min, i8_max};
    static const update_run i16[] = {i16_add, i16_mul, i16_min, i16_max};
    static const update_run i32[] = {i32_add, i32_mul, i32_min, i32_max};
    static const update_run i64[] = {i64_add, i64_mul, i64_min, i64_max};
    static const update_run u32[] = {u32_add, u32_mul, u32_min, u32_max};
    static const update_run u64[] = {u64_add, u64_mul, u64_min, u64_max};
    static const update_run f32[] = {f32_add, f32_mul, f32_min, f32_max};
    static const update_run f64[] = {f64_add, f64_mul, f64_min, f64_max};
    if (op == REE_SET) {
        switch (dtype) {
            case REE_BOOL: return set_bool;
            case REE_F16: return set_f16;
            case REE_BF16: return set_bf16;
            case REE_F32: return set_f32;
            case REE_F64: return set_f64;
        }
        switch (ree_dtype_bytes(dtype)) {
            case 1: return set_1;
            case 2: return set_2;
            case 4: return set_4;
            default: return set_8;
        }
    }
    switch (dtype) {
        case REE_BOOL: return bools[op - 1];
        case REE_U8: return u8[op - 1];
        case REE_I8: return i8[op - 1];
        case REE_I16: return i16[op - 1];
        case REE_I32: return i32[op - 1];
        case REE_I64: return i64[op - 1];
        case REE_U32: return u32[op - 1];
        case REE_U64: return u64[op - 1];
        case REE_F32: return f32[op - 1];
        default: return f64[op - 1];
    }
}

/* The index with negatives counted from the end, or -1 (and *status = 1) outside. */
static inline int64_t target_of(int64_t index, int64_t extent, int64_t *status)
{
    if (index < -extent || index >= extent) {
        *status = 1;
        return -1;
    }
    return index < 0 ? index + extent : index;
}

/* Offsets of a row of slices in out, index and src. */
static void row_offsets(const ree_scatter_axis_args *a, int64_t row, int64_t offsets[3])
{
    offsets[0] = offsets[1] = offsets[2] = 0;
    for (int64_t axis = a->rank - 2; axis >= 0; axis--) {
        int64_t at = row % a->shape[axis];
        row /= a->shape[axis];
        offsets[0] += at * a->out_stride[axis];
        offsets[1] += at * a->index_stride[axis];
        offsets[2] += at * a->src_stride[axis];
    }
}

void ree_scatter_axis(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_scatter_axis_args *a = args;
    (void)scratch;
    const update_run update = update_of(a->op, a->dtype);
    const int64_t bytes = ree_dtype_bytes(a->dtype), last = a->rank - 1;
    for (int64_t r = r0; r < r1; r++) {
        int64_t at[3];
        row_offsets(a, r, at);
        /* k outside: every slice still sees its k ascending, and neighbours share cache lines */
        for (int64_t k = 0; k < a->n; k++) {
            const int64_t *index = a->index + at[1] + k * a->index_step;
            const char *src = (const char *)a->src + (at[2] + k * a->src_step) * bytes;
            for (int64_t c = c0; c < c1; c++) {
                int64_t target = target_of(index[c * a->index_stride[last]], a->extent, a->status);
                if (target < 0) continue;
                int64_t to = at[0] + c * a->out_stride[last] + target * a->out_step;
                update((char *)a->out + to * bytes, src + c * a->src_stride[last] * bytes, 1, 1, 1);
            }
        }
    }
}

void ree_scatter_rows(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_scatter_rows_args *a = args;
    (void)scratch;
    const update_run update = update_of(a->op, a->dtype);
    const int64_t bytes = ree_dtype_bytes(a->dtype);
    for (int64_t i = 0; i < a->n; i++) {
        int64_t target = target_of(a->index[i * a->index_step], a->extent, a->status);
        if (target < r0 || target >= r1) continue;
        char *out = (char *)a->out + (target * a->out_row + c0) * bytes;
        const char *src = (const char *)a->src + (i * a->src_row + c0 * a->src_col) * bytes;
        update(out, src, c1 - c0, 1, a->src_col);
    }
}
