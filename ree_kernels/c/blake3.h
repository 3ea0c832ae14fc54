/* BLAKE3: the tree, in pieces that any number of threads may hash. */
#ifndef REE_BLAKE3_H
#define REE_BLAKE3_H

#include "abi.h"

/* Modes: with a key, of the context of a key derivation, of its material; 0 is the plain hash. */
enum { REE_BLAKE3_KEYED = 16, REE_BLAKE3_CONTEXT = 32, REE_BLAKE3_MATERIAL = 64 };

enum { REE_BLAKE3_CHUNK_BYTES = 1024, REE_BLAKE3_GROUP_CHUNKS_MAX = 256 };

typedef struct {
    uint32_t key[8];
    uint32_t flags;
} ree_blake3_mode;

/* key: 32 bytes, or NULL for modes without one. */
void ree_blake3_set_mode(ree_blake3_mode *mode, const uint8_t *key, uint32_t flags);

/* One input, or a part of it that starts at chunk `first_chunk` and ends with a group or with the input.
 * A group is group_chunks chunks, a power of two up to REE_BLAKE3_GROUP_CHUNKS_MAX, and the last may be shorter;
 * cvs: the groups' chaining values, 32 bytes each; out: root output, out_bytes from its byte 0. */
typedef struct {
    const uint8_t *data;
    int64_t n_bytes;
    int64_t first_chunk;
    int64_t group_chunks;
    uint8_t *cvs;
    uint8_t *out;
    int64_t out_bytes;
    ree_blake3_mode mode;
} ree_blake3_args;

int64_t ree_blake3_group_count(int64_t n_bytes, int64_t group_chunks);

/* cvs of groups [c0, c1); the index space is 1 row of so many columns as there are groups. */
void ree_blake3_groups(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* out, from the cvs of all groups of a whole input (if it has but one, from the data); 1 row, 1 column. */
void ree_blake3_root(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);
int64_t ree_blake3_root_scratch_bytes(int64_t n_groups);

/* The same for many inputs: args is an array of pointers to ree_blake3_args, one for each row; the scratch is that of
 * the one with the most groups. */
void ree_blake3_roots(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch);

/* A whole input on this thread. */
void ree_blake3_hash(const ree_blake3_mode *mode, const uint8_t *data, int64_t n_bytes, uint8_t *out,
                     int64_t out_bytes);

/* One node: 32 bytes, those of the root if is_root. A chunk has up to 1024 bytes, a parent two chaining values. */
void ree_blake3_chunk(const ree_blake3_mode *mode, const uint8_t *data, int64_t n_bytes, int64_t chunk, int is_root,
                      uint8_t *out);
void ree_blake3_parent(const ree_blake3_mode *mode, const uint8_t *children, int is_root, uint8_t *out);

/* One level up, none of it the root: n chaining values become (n + 1) / 2, an odd last one as it is. `out` may be
 * `cvs`. */
void ree_blake3_parents(const ree_blake3_mode *mode, const uint8_t *cvs, int64_t n, uint8_t *out);

/* The root of an input of n_bytes of which some chunks are known. chunks: their numbers, ascending, n_chunks > 0;
 * data: their bytes, one after another; cvs: the chaining values of the largest subtrees without any of them, from left
 * to right. Returns 0, or 1 if there are not exactly as many as are needed. */
int ree_blake3_opening_root(const int64_t *chunks, int64_t n_chunks, const uint8_t *data, int64_t n_bytes,
                            const uint8_t *cvs, int64_t n_cvs, uint8_t *out);

/* An input that comes in pieces. stack: subtrees that are complete, the largest first. */
typedef struct {
    ree_blake3_mode mode;
    int64_t chunks; /* complete, before the open one */
    int64_t open_bytes;
    int64_t depth;
    uint8_t open[1024];
    uint8_t stack[56 * 32];
} ree_blake3_hasher;

void ree_blake3_start(ree_blake3_hasher *hasher, const ree_blake3_mode *mode);
void ree_blake3_update(ree_blake3_hasher *hasher, const uint8_t *data, int64_t n_bytes);

/* n whole groups at once, by their chaining values: at a multiple of group_chunks, and n > 1. */
void ree_blake3_push(ree_blake3_hasher *hasher, const uint8_t *cvs, int64_t n, int64_t group_chunks);

/* n bytes of the root output from byte `seek` on; the hasher may go on. */
void ree_blake3_finish(const ree_blake3_hasher *hasher, uint64_t seek, uint8_t *out, int64_t n);

#endif
