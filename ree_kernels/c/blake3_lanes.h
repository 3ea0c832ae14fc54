/* The compression function of BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn: "BLAKE3, one function, fast
 * everywhere", section 2), alone and on many inputs side by side.
 *
 * Side by side, input l is lane l of every vector; REE_STREAMS states of 16 vectors are mixed in turn, since one
 * alone would wait for its own results. */
#ifndef REE_BLAKE3_LANES_H
#define REE_BLAKE3_LANES_H

#include "transpose.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "message words are read as they lie in memory"
#endif

enum { CHUNK_BYTES = 1024, BLOCK_BYTES = 64, CV_BYTES = 32, ROUNDS = 7, LANES_MAX = REE_STREAMS * W };
enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };

static const uint32_t blake3_iv[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/* Words of the message in each round: round r + 1 takes word PERMUTATION[i] where round r took word i. */
static const uint8_t blake3_words[ROUNDS][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

#define WORD_ROTATE(x, n) ((x) >> (n) | (x) << (32 - (n)))

/* The mixing function G in the four columns (turn 0) or diagonals (turn 1) of the state. */
#define DEFINE_MIX(NAME, T, ROTATE)                                                 \
    REE_INLINE void NAME(T *v, const T *m, const uint8_t *words, const int turn)    \
    {                                                                               \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)                         \
        {                                                                           \
            T *a = v + i, *b = v + 4 + (i + turn) % 4;                              \
            T *c = v + 8 + (i + 2 * turn) % 4, *d = v + 12 + (i + 3 * turn) % 4;    \
            *a += m[words[8 * turn + 2 * i]], *a += *b, *d = ROTATE(*d ^ *a, 16);   \
            *c += *d, *b = ROTATE(*b ^ *c, 12);                                     \
            *a += m[words[8 * turn + 2 * i + 1]], *a += *b, *d = ROTATE(*d ^ *a, 8); \
            *c += *d, *b = ROTATE(*b ^ *c, 7);                                      \
        }                                                                           \
    }

DEFINE_MIX(mix_word, uint32_t, WORD_ROTATE)
DEFINE_MIX(mix_lanes, vu, vu_rotate)

/* One block; out: all 16 words of the result. */
static void compress(const uint32_t cv[8], const uint8_t *block, uint64_t counter, uint32_t n_bytes, uint32_t flags,
                     uint32_t out[16])
{
    uint32_t m[16];
    memcpy(m, block, sizeof m);
    uint32_t v[16] = {[8] = blake3_iv[0], blake3_iv[1], blake3_iv[2], blake3_iv[3],
                      (uint32_t)counter, (uint32_t)(counter >> 32), n_bytes, flags};
    memcpy(v, cv, CV_BYTES);
#pragma GCC unroll 7
    for (int r = 0; r < ROUNDS; r++) {
        mix_word(v, m, blake3_words[r], 0);
        mix_word(v, m, blake3_words[r], 1);
    }
    for (int i = 0; i < 8; i++) {
        out[i] = v[i] ^ v[8 + i];
        out[8 + i] = v[8 + i] ^ cv[i];
    }
}

/* Inputs of whole blocks that lie `stride` bytes apart, n of at most LANES_MAX. counter: of the first; it grows by
 * `count` from one to the next. start, end: flags of each input's first and last block. */
typedef struct {
    const uint8_t *data;
    int64_t stride, n, blocks;
    const uint32_t *key;
    uint64_t counter, count;
    uint32_t flags, start, end;
} lanes_inputs;

REE_INLINE void load_messages(vu m[16], const uint8_t *const *in, int64_t offset)
{
#pragma GCC unroll 4
    for (int part = 0; part < 16 / W; part++) {
        vu square[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; l++)
            square[l] = vu_load(in[l] + offset + part * 4 * W);
        transpose(square);
#pragma GCC unroll 16
        for (int l = 0; l < W; l++)
            m[part * W + l] = square[l];
    }
}

REE_INLINE void store_cvs(const vu h[8], uint8_t *out, int64_t n)
{
#pragma GCC unroll 2
    for (int part = 0; part < (W < 8 ? 8 / W : 1); part++) {
        vu square[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; i++)
            square[i] = h[(part * W + i) % 8];
        transpose(square);
        for (int l = 0; l < W && l < n; l++)
            memcpy(out + l * CV_BYTES + part * 4 * W, &square[l], W < 8 ? 4 * W : CV_BYTES);
    }
}

/* One block of W inputs: h becomes their new chaining values. `streams` such states are mixed in turn. */
REE_INLINE void compress_blocks(vu h[][8], vu m[][16], const int streams, const uint32_t *low, const uint32_t *high,
                                uint32_t flags)
{
    vu v[REE_STREAMS][16];
#pragma GCC unroll 2
    for (int s = 0; s < streams; s++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            v[s][i] = h[s][i];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            v[s][8 + i] = vu_set(blake3_iv[i]);
        v[s][12] = vu_load(low + s * W);
        v[s][13] = vu_load(high + s * W);
        v[s][14] = vu_set(BLOCK_BYTES);
        v[s][15] = vu_set(flags);
    }
#pragma GCC unroll 7
    for (int r = 0; r < ROUNDS; r++)
#pragma GCC unroll 2
        for (int turn = 0; turn < 2; turn++)
#pragma GCC unroll 2
            for (int s = 0; s < streams; s++)
                mix_lanes(v[s], m[s], blake3_words[r], turn);
#pragma GCC unroll 2
    for (int s = 0; s < streams; s++)
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            h[s][i] = v[s][i] ^ v[s][8 + i];
}

/* The chaining values of the inputs, 32 bytes each, on streams * W lanes (constant at every call). `out` may lie
 * over the data: all is read before anything is written. */
REE_INLINE void compress_lanes(const lanes_inputs *x, const int streams, uint8_t *out)
{
    const uintptr_t ahead = (uintptr_t)streams * W * CHUNK_BYTES;
    const uint8_t *in[LANES_MAX];
    uint32_t low[LANES_MAX], high[LANES_MAX];
    const uint8_t *data = x->data;
    uint64_t counter = x->counter;
    for (int l = 0; l < streams * W; l++) {
        in[l] = data;
        low[l] = (uint32_t)counter;
        high[l] = (uint32_t)(counter >> 32);
        if (l + 1 < x->n) { /* lanes without an input repeat the last */
            data += x->stride;
            counter += x->count;
        }
    }
    vu h[REE_STREAMS][8];
    for (int s = 0; s < streams; s++)
        for (int i = 0; i < 8; i++)
            h[s][i] = vu_set(x->key[i]);
    for (int64_t block = 0; block < x->blocks; block++) {
        vu m[REE_STREAMS][16];
        const uint32_t flags = x->flags | (block ? 0 : x->start) | (block + 1 < x->blocks ? 0 : x->end);
#pragma GCC unroll 2
        for (int s = 0; s < streams; s++)
            load_messages(m[s], in + s * W, block * BLOCK_BYTES);
        if (x->blocks > 1) /* the next chunks lie right behind these; beyond the end it does no harm */
            for (int l = 0; l < streams * W; l++)
                __builtin_prefetch((const void *)((uintptr_t)in[l] + ahead + (uintptr_t)block * BLOCK_BYTES));
        __asm__ volatile("" : : "r"(m) : "memory"); /* messages stay in memory, registers hold the states */
        compress_blocks(h, m, streams, low, high, flags);
    }
#pragma GCC unroll 2
    for (int s = 0; s < streams; s++)
        if (s * W < x->n)
            store_cvs(h[s], out + s * W * CV_BYTES, x->n - s * W);
}

#endif
