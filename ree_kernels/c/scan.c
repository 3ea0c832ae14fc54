/* Scans: every slice strictly in sequence, several slices side by side.
 *
 * cumsum starts from +0 and cumprod from 1; integers wrap. cummax and cummin take element k
 * over when it is NaN, or neither it nor the running value is NaN and it is not smaller
 * (larger), so the index is that of the last among equals; the value is the element there. */
#include "scan.h"

#include "dtype.h"

enum { LANES = 16, BLOCK = 64 };

#define IS_NAN(v) ((v) != (v))
#define SAME(v) (v)

/* A group of slices: lane l reads x + x_at[l] + k * x_step, writes out + out_at[l] + k * out_step. */
typedef struct {
    int64_t lanes;
    int64_t x_at[BLOCK], out_at[BLOCK];
} scan_group;

/* ADJACENT: lanes are neighbours in memory, which lets the loops over them be vectors. */
#define SCAN_FOLD(T, ADJACENT, START, UPDATE, STORE)                                              \
    {                                                                                             \
        T acc[BLOCK];                                                                             \
        for (int64_t l = 0; l < g->lanes; l++) acc[l] = (START);                                  \
        for (int64_t k = 0; k < a->n; k++) {                                                      \
            const T *x = (const T *)a->x + k * a->x_step + (ADJACENT ? g->x_at[0] : 0);           \
            T *out = (T *)a->out + k * a->out_step + (ADJACENT ? g->out_at[0] : 0);               \
            for (int64_t l = 0; l < g->lanes; l++) {                                              \
                T v = x[ADJACENT ? l : g->x_at[l]];                                               \
                acc[l] = (UPDATE);                                                                \
                out[ADJACENT ? l : g->out_at[l]] = STORE(acc[l]);                                 \
            }                                                                                     \
        }                                                                                         \
    }

#define SCAN_PICK(T, ADJACENT, COMPARE, STORE)                                                    \
    {                                                                                             \
        T acc[BLOCK];                                                                             \
        int64_t at[BLOCK];                                                                        \
        for (int64_t l = 0; l < g->lanes; l++) {                                                  \
            acc[l] = ((const T *)a->x)[g->x_at[l]];                                               \
            at[l] = 0;                                                                            \
        }                                                                                         \
        for (int64_t k = 0; k < a->n; k++) {                                                      \
            const T *x = (const T *)a->x + k * a->x_step + (ADJACENT ? g->x_at[0] : 0);           \
            int64_t to = k * a->out_step + (ADJACENT ? g->out_at[0] : 0);                         \
            for (int64_t l = 0; l < g->lanes; l++) {                                              \
                T v = x[ADJACENT ? l : g->x_at[l]];                                               \
                int take = IS_NAN(v) | (!IS_NAN(acc[l]) & (v COMPARE acc[l]));                    \
                acc[l] = take ? v : acc[l];                                                       \
                at[l] = take ? k : at[l];                                                         \
            }                                                                                     \
            for (int64_t l = 0; a->out && l < g->lanes; l++)                                      \
                ((T *)a->out)[to + (ADJACENT ? l : g->out_at[l])] = STORE(acc[l]);                \
            for (int64_t l = 0; a->indices && l < g->lanes; l++)                                  \
                a->indices[to + (ADJACENT ? l : g->out_at[l])] = at[l];                           \
        }                                                                                         \
    }

#define DEFINE_SCAN(NAME, T, U, STORE)                                                           \
    static inline void NAME##_ops(const ree_scan_args *a, const scan_group *g, const int adjacent) { \
        switch (a->op) {                                                                          \
            case REE_CUMSUM: SCAN_FOLD(T, adjacent, 0, (T)((U)acc[l] + (U)v), STORE) break;       \
            case REE_CUMPROD: SCAN_FOLD(T, adjacent, 1, (T)((U)acc[l] * (U)v), STORE) break;      \
            case REE_CUMMAX: SCAN_PICK(T, adjacent, >=, STORE) break;                             \
            default: SCAN_PICK(T, adjacent, <=, STORE) break;                                     \
        }                                                                                         \
    }                                                                                             \
    static void NAME(const ree_scan_args *a, const scan_group *g, int adjacent) {                 \
        if (adjacent)                                                                             \
            NAME##_ops(a, g, 1);                                                                  \
        else                                                                                      \
            NAME##_ops(a, g, 0);                                                                  \
    }

DEFINE_SCAN(scan_u8, uint8_t, uint32_t, SAME)
DEFINE_SCAN(scan_i8, int8_t, uint32_t, SAME)
DEFINE_SCAN(scan_i16, int16_t, uint32_t, SAME)
DEFINE_SCAN(scan_i32, int32_t, uint32_t, SAME)
DEFINE_SCAN(scan_u32, uint32_t, uint32_t, SAME)
DEFINE_SCAN(scan_i64, int64_t, uint64_t, SAME)
DEFINE_SCAN(scan_u64, uint64_t, uint64_t, SAME)
DEFINE_SCAN(scan_f32, float, float, ree_canonical_f32)
DEFINE_SCAN(scan_f64, double, double, ree_canonical_f64)

static void scan_slices(const ree_scan_args *a, const scan_group *g, int adjacent)
{
    switch (a->dtype) {
        case REE_BOOL:
        case REE_U8: scan_u8(a, g, adjacent); break;
        case REE_I8: scan_i8(a, g, adjacent); break;
        case REE_I16: scan_i16(a, g, adjacent); break;
        case REE_I32: scan_i32(a, g, adjacent); break;
        case REE_U32: scan_u32(a, g, adjacent); break;
        case REE_I64: scan_i64(a, g, adjacent); break;
        case REE_U64: scan_u64(a, g, adjacent); break;
        case REE_F32: scan_f32(a, g, adjacent); break;
        default: scan_f64(a, g, adjacent); break;
    }
}

/* Dtypes: all but f16 and bf16 (a scan of those is a scan of f32 between casts). */
void ree_scan(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_scan_args *a = args;
    (void)scratch;
    if (a->n == 0) return;
    int adjacent = a->x_col == 1 && a->out_col == 1 && c1 - c0 > 1;
    int64_t most = adjacent ? BLOCK : LANES;
    scan_group g;
    g.lanes = 0;
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t c = c0; c < c1; c++) {
            g.x_at[g.lanes] = r * a->x_row + c * a->x_col;
            g.out_at[g.lanes] = r * a->out_row + c * a->out_col;
            if (++g.lanes < most) continue;
            scan_slices(a, &g, adjacent);
            g.lanes = 0;
        }
        if (adjacent && g.lanes) { /* neighbours end with their row */
            scan_slices(a, &g, 1);
            g.lanes = 0;
        }
    }
    if (g.lanes) scan_slices(a, &g, adjacent);
}
