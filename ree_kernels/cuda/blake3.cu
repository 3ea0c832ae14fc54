/* BLAKE3 of many inputs (O'Connor, Aumasson, Neves, Wilcox-O'Hearn: "BLAKE3, one function, fast everywhere", 2).
 *
 * A thread hashes a chunk: its state and message are 32 registers, four mixing functions are independent of each
 * other, and the integer pipes are the bound, not memory. So the bytes may come the simple way: a warp copies 128 of
 * each of its 32 chunks to shared memory while it hashes the 128 before. A block joins the chunks of a group to one
 * chaining value (of a whole input: its root); what is then left of all inputs is joined by a second kernel. The tree
 * is left-full: joining neighbours level by level, an odd last one carried up, gives it.
 */
#include "ree.cuh"

#ifndef REE_BLAKE3_THREADS
#define REE_BLAKE3_THREADS 128 /* of a block: chunks that it hashes at a time */
#endif

enum { CHUNK_BYTES = 1024, BLOCK_BYTES = 64, CV_WORDS = 8, CV_BYTES = 32 };
enum { STAGE_BYTES = 128, STAGES = CHUNK_BYTES / STAGE_BYTES, PIECE_BYTES = 16, PIECES = STAGE_BYTES / PIECE_BYTES };
enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };
enum { WARP_PIECES = REE_WARP * PIECES, TOP_CVS_MAX = 512 };

/* Of each input: bytes (at least one), the first of its blocks in the grid, rounds of a block, and where the chaining
 * values of its groups go, or its root if it is one group. */
struct ree_blake3_args {
    const u8 *data[64];
    i64 n_bytes[64];
    i64 first_block[64];
    i64 rounds[64];
    u8 *out[64];
    i64 count;
};

/* table: of each input, a block's work: address and number of its chaining values, at least two, and where the root
 * goes. They are used up. */
struct ree_blake3_roots_args {
    const i64 *table;
};

/* -- the compression function ------------------------------------------------------------------------ */
#define REE_MIX(a, b, c, d, x, y)                                                                                      \
    a = a + b + (x), d = __byte_perm(d ^ a, 0, 0x1032), c = c + d, b = __funnelshift_r(b ^ c, b ^ c, 12);              \
    a = a + b + (y), d = __byte_perm(d ^ a, 0, 0x0321), c = c + d, b = __funnelshift_r(b ^ c, b ^ c, 7)

REE_INLINE void ree_blake3_start(u32 (&h)[8])
{
    h[0] = 0x6a09e667u, h[1] = 0xbb67ae85u, h[2] = 0x3c6ef372u, h[3] = 0xa54ff53au;
    h[4] = 0x510e527fu, h[5] = 0x9b05688cu, h[6] = 0x1f83d9abu, h[7] = 0x5be0cd19u;
}

REE_INLINE void ree_blake3_compress(u32 (&h)[8], u32 (&m)[16], u64 counter, u32 n_bytes, u32 flags)
{
    u32 v[16] = {h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], 0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                 static_cast<u32>(counter), static_cast<u32>(counter >> 32), n_bytes, flags};
#pragma unroll
    for (int round = 0; round < 7; round++) {
        REE_MIX(v[0], v[4], v[8], v[12], m[0], m[1]);
        REE_MIX(v[1], v[5], v[9], v[13], m[2], m[3]);
        REE_MIX(v[2], v[6], v[10], v[14], m[4], m[5]);
        REE_MIX(v[3], v[7], v[11], v[15], m[6], m[7]);
        REE_MIX(v[0], v[5], v[10], v[15], m[8], m[9]);
        REE_MIX(v[1], v[6], v[11], v[12], m[10], m[11]);
        REE_MIX(v[2], v[7], v[8], v[13], m[12], m[13]);
        REE_MIX(v[3], v[4], v[9], v[14], m[14], m[15]);
        const u32 next[16] = {m[2], m[6], m[3],  m[10], m[7], m[0],  m[4],  m[13],
                              m[1], m[11], m[12], m[5], m[9], m[14], m[15], m[8]};
#pragma unroll
        for (int i = 0; i < 16; i++)
            m[i] = next[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        h[i] = v[i] ^ v[8 + i];
}

REE_INLINE void ree_put_cv(uint4 *out, const u32 (&h)[8])
{
    out[0] = make_uint4(h[0], h[1], h[2], h[3]);
    out[1] = make_uint4(h[4], h[5], h[6], h[7]);
}

/* -- the tree ------------------------------------------------------------------------------------------ */
/* Join n chaining values in place until at most `wanted` are left, by the whole block; gives how many. last: what is
 * added to the flags of the parent of all. */
REE_INLINE i64 ree_blake3_join(uint4 *cvs, i64 n, i64 wanted, u32 last)
{
    while (n > wanted) {
        const i64 pairs = n / 2;
        for (i64 first = 0; first < pairs; first += blockDim.x) {
            const i64 pair = first + threadIdx.x;
            u32 h[8], m[16];
            if (pair < pairs)
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    const uint4 words = cvs[4 * pair + q];
                    m[4 * q] = words.x, m[4 * q + 1] = words.y, m[4 * q + 2] = words.z, m[4 * q + 3] = words.w;
                }
            __syncthreads(); /* what is written below was read; what others read next lies behind it */
            if (pair < pairs) {
                ree_blake3_start(h);
                ree_blake3_compress(h, m, 0, BLOCK_BYTES, PARENT | (n == 2 ? last : 0));
                ree_put_cv(cvs + 2 * pair, h);
            }
        }
        if (n % 2 == 1 && threadIdx.x < 2)
            cvs[2 * pairs + threadIdx.x] = cvs[4 * pairs + threadIdx.x];
        __syncthreads();
        n -= pairs;
    }
    return n;
}

/* -- chunks -------------------------------------------------------------------------------------------- */
/* Four bytes of an input of which `left` are left; zeros behind its end. */
REE_INLINE u32 ree_word(const u8 *data, i64 left)
{
    if (left >= 4 && reinterpret_cast<u64>(data) % 4 == 0)
        return *reinterpret_cast<const u32 *>(data);
    u32 word = 0;
#pragma unroll 1
    for (int n = 0; n < 4 && n < left; n++)
        word |= static_cast<u32>(data[n]) << (8 * n);
    return word;
}

/* Copy bytes [128 number, 128 number + 128) of each chunk of a warp. data: its first chunk, `left` bytes before the
 * input's end. Piece p of chunk c goes to place 8 c + (p ^ c % 8), so that the same piece of eight chunks, as well as
 * eight pieces of one, lie in all banks. */
REE_INLINE void ree_blake3_load(uint4 *stage, const u8 *data, i64 left, bool is_whole, int number)
{
    const int piece = static_cast<int>(threadIdx.x) % PIECES, row = static_cast<int>(threadIdx.x) % REE_WARP / PIECES;
    const i64 at = row * CHUNK_BYTES + number * STAGE_BYTES + piece * PIECE_BYTES;
    if (is_whole) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            const int chunk = row + i * (REE_WARP / PIECES);
            ree_copy_async16(stage + chunk * PIECES + (piece ^ chunk % PIECES), data + at + i * (4 * CHUNK_BYTES));
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < 4 * PIECES; i++) {
            const int chunk = row + i / 4 * (REE_WARP / PIECES), word = i % 4;
            const i64 from = at + i / 4 * (4 * CHUNK_BYTES) + 4 * word;
            reinterpret_cast<u32 *>(stage + chunk * PIECES + (piece ^ chunk % PIECES))[word] =
                ree_word(data + from, left - from);
        }
    }
    ree_copy_commit();
}

/* The chaining values of the chunks of a warp. first: the number of its first one, which lies at `data`, `left` > 0
 * bytes before the input's end; stages: two of WARP_PIECES; root: ROOT if the chunk is the input. */
REE_INLINE void ree_blake3_chunk(u32 (&h)[8], uint4 *stages, const u8 *data, i64 first, i64 left, u32 root)
{
    const int lane = static_cast<int>(threadIdx.x) % REE_WARP;
    const bool is_whole = reinterpret_cast<u64>(data) % PIECE_BYTES == 0 && left >= REE_WARP * CHUNK_BYTES;
    const i64 rest = left - lane * CHUNK_BYTES;
    const int n_bytes = rest < 0 ? 0 : rest < CHUNK_BYTES ? static_cast<int>(rest) : CHUNK_BYTES;
    const int blocks = (n_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    const int n_stages = left < CHUNK_BYTES ? static_cast<int>((left + STAGE_BYTES - 1) / STAGE_BYTES) : STAGES;
    ree_blake3_start(h);
    ree_blake3_load(stages, data, left, is_whole, 0);
#pragma unroll 1
    for (int block = 0; block < 2 * n_stages; block++) {
        const uint4 *stage = stages + block / 2 % 2 * WARP_PIECES + lane * PIECES;
        if (block % 2 == 0) {
            if (block / 2 + 1 < n_stages)
                ree_blake3_load(stages + (block / 2 + 1) % 2 * WARP_PIECES, data, left, is_whole, block / 2 + 1);
            else
                ree_copy_commit();
            ree_copy_wait<1>();
            __syncwarp();
        }
        if (block < blocks) {
            u32 m[16];
#pragma unroll
            for (int q = 0; q < 4; q++) {
                const uint4 words = stage[(block % 2 * 4 + q) ^ lane % PIECES];
                m[4 * q] = words.x, m[4 * q + 1] = words.y, m[4 * q + 2] = words.z, m[4 * q + 3] = words.w;
            }
            const bool is_last = block + 1 == blocks;
            ree_blake3_compress(h, m, static_cast<u64>(first + lane),
                                static_cast<u32>(is_last ? n_bytes - block * BLOCK_BYTES : BLOCK_BYTES),
                                (block == 0 ? CHUNK_START : 0) | (is_last ? CHUNK_END | root : 0));
        }
        if (block % 2 == 1)
            __syncwarp(); /* the next copy is into what was read here */
    }
}

REE_KERNEL(ree_blake3_groups, ree_blake3_args, REE_BLAKE3_THREADS)
{
    __shared__ uint4 stages[REE_BLAKE3_THREADS / REE_WARP * 2 * WARP_PIECES];
    uint4 *cvs = reinterpret_cast<uint4 *>(ree_shared()); /* of rounds * blockDim.x chunks */
    int input = 0;
    for (int end = static_cast<int>(a.count); end - input > 1;) {
        const int middle = (input + end) / 2;
        if (a.first_block[middle] <= static_cast<i64>(blockIdx.x))
            input = middle;
        else
            end = middle;
    }
    const int thread = static_cast<int>(threadIdx.x), warp = thread / REE_WARP;
    const i64 n_bytes = a.n_bytes[input], rounds = a.rounds[input], group = blockIdx.x - a.first_block[input];
    const i64 per_group = rounds * blockDim.x, chunks = (n_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
    const u32 root = chunks <= per_group ? ROOT : 0;
    u32 h[8];
#pragma unroll 1
    for (int round = 0; round < rounds; round++) {
        const i64 first = group * per_group + round * static_cast<i64>(blockDim.x) + warp * REE_WARP;
        const i64 left = n_bytes - first * CHUNK_BYTES;
        if (left > 0) {
            ree_blake3_chunk(h, stages + warp * 2 * WARP_PIECES, a.data[input] + first * CHUNK_BYTES, first, left,
                             chunks == 1 ? ROOT : 0);
            ree_put_cv(cvs + 2 * (round * static_cast<int>(blockDim.x) + thread), h);
        }
    }
    __syncthreads();
    const i64 here = chunks - group * per_group;
    ree_blake3_join(cvs, here < per_group ? here : per_group, 1, root);
    if (thread < 2)
        reinterpret_cast<uint4 *>(a.out[input] + group * CV_BYTES)[thread] = cvs[thread];
}

REE_KERNEL(ree_blake3_roots, ree_blake3_roots_args, 256)
{
    __shared__ uint4 top[2 * TOP_CVS_MAX];
    const i64 *row = a.table + 3 * static_cast<i64>(blockIdx.x);
    uint4 *cvs = reinterpret_cast<uint4 *>(row[0]);
    const i64 n = ree_blake3_join(cvs, row[1], TOP_CVS_MAX, 0);
    for (int i = static_cast<int>(threadIdx.x); i < 2 * n; i += blockDim.x)
        top[i] = cvs[i];
    __syncthreads();
    ree_blake3_join(top, n, 1, ROOT);
    if (threadIdx.x < 2)
        reinterpret_cast<uint4 *>(row[2])[threadIdx.x] = top[threadIdx.x];
}
