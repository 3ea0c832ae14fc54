/* The register tiles of one way to multiply bytes (vec_i8.h), as functions chosen by the number of rows.
 *
 * Included once for each way, named by I8_WAY: functions of one instruction set are not inlined into those of
 * another, so the text serves every way, not one function. The including file has tile_i8_args.
 */
#define I8_PASTE(a, b) a##_##b
#define I8_NAME(a, b) I8_PASTE(a, b)
#define OF_WAY(name) I8_NAME(name, I8_WAY)

/* One chunk of mr rows by a panel. Where rows are few, steps go to `split` sums in turn, so that enough of them are
 * independent to hide their latency. mr and split are constants at every call. */
REE_INLINE OF_WAY(I8_TARGET) void OF_WAY(tile_i8)(const tile_i8_args *t, const int mr, const int split)
{
    enum { WORDS = OF_WAY(I8_WORDS), A_ROW = I8_A_ROW * WORDS };
    vu sum[OF_WAY(I8_MR)][I8_NV];
    const uint32_t *restrict a = t->a;
    const int8_t *restrict b = t->b, *restrict next = t->next;
#pragma GCC unroll 16
    for (int i = 0; i < mr * split; i++)
#pragma GCC unroll 4
        for (int v = 0; v < I8_NV; v++)
            sum[i][v] = vu_set(0);

    int64_t step = 0;
    for (; step + split <= t->steps; step += split)
#pragma GCC unroll 4
        for (int s = 0; s < split; s++, a += WORDS, b += I8_STEP_BYTES, next += t->next_step) {
            OF_WAY(vb) bytes[I8_NV];
            __builtin_prefetch(next, 0, 2);
#pragma GCC unroll 4
            for (int v = 0; v < I8_NV; v++) {
                bytes[v] = OF_WAY(vb_load)(b + v * 4 * W);
                if (v * 4 * W % 64 == 0)
                    __builtin_prefetch(b + v * 4 * W + t->ahead);
            }
#pragma GCC unroll 16
            for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
                for (int v = 0; v < I8_NV; v++)
                    sum[s * mr + i][v] = OF_WAY(vu_step)(sum[s * mr + i][v], a + i * A_ROW, bytes[v]);
        }
    for (; split > 1 && step < t->steps; step++, a += WORDS, b += I8_STEP_BYTES)
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
            for (int v = 0; v < I8_NV; v++)
                sum[i][v] = OF_WAY(vu_step)(sum[i][v], a + i * A_ROW, OF_WAY(vb_load)(b + v * 4 * W));

#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int v = 0; v < I8_NV; v++) {
#pragma GCC unroll 4
            for (int s = 1; s < split; s++)
                sum[i][v] += sum[s * mr + i][v];
            const vu before = vu_load(t->before + i * t->before_row + v * W) * vu_set(t->factor);
            vu_store(t->c + i * t->c_row + v * W, before + sum[i][v]);
        }
}

#define TILE(mr)                                                                                                    \
    static __attribute__((noinline)) OF_WAY(I8_TARGET) void I8_NAME(OF_WAY(tile_i8), mr)(const tile_i8_args *t)     \
    {                                                                                                               \
        enum { FIT = OF_WAY(I8_MR) / mr, SPLIT = FIT >= 4 ? 4 : FIT >= 2 ? 2 : 1 };                                 \
        OF_WAY(tile_i8)(t, mr, SPLIT);                                                                              \
    }

TILE(1) TILE(2)
#if OF_WAY(I8_MR) >= 4
TILE(3) TILE(4)
#endif
#if OF_WAY(I8_MR) >= 6
TILE(5) TILE(6)
#endif
#if OF_WAY(I8_MR) >= 12
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif
#if OF_WAY(I8_MR) >= 14
TILE(13) TILE(14)
#endif

static const i8_way OF_WAY(way) = {
    OF_WAY(I8_MR), OF_WAY(I8_WORDS), OF_WAY(I8_FLIPS_SIGNED), OF_WAY(I8_FLIPS_UNSIGNED), {
        0, I8_NAME(OF_WAY(tile_i8), 1), I8_NAME(OF_WAY(tile_i8), 2),
#if OF_WAY(I8_MR) >= 4
        I8_NAME(OF_WAY(tile_i8), 3), I8_NAME(OF_WAY(tile_i8), 4),
#endif
#if OF_WAY(I8_MR) >= 6
        I8_NAME(OF_WAY(tile_i8), 5), I8_NAME(OF_WAY(tile_i8), 6),
#endif
#if OF_WAY(I8_MR) >= 12
        I8_NAME(OF_WAY(tile_i8), 7), I8_NAME(OF_WAY(tile_i8), 8), I8_NAME(OF_WAY(tile_i8), 9),
        I8_NAME(OF_WAY(tile_i8), 10), I8_NAME(OF_WAY(tile_i8), 11), I8_NAME(OF_WAY(tile_i8), 12),
#endif
#if OF_WAY(I8_MR) >= 14
        I8_NAME(OF_WAY(tile_i8), 13), I8_NAME(OF_WAY(tile_i8), 14),
#endif
    },
};

#undef I8_PASTE
#undef I8_NAME
#undef OF_WAY
#undef TILE
