/* BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn: "BLAKE3, one function, fast everywhere", section 2).
 *
 * The tree is left-full: joining neighbours level by level, an odd last one carried up, gives it. So subtrees of
 * 2^n chunks at multiples of 2^n are hashed by themselves, wherever the input ends, and many nodes of a level are
 * hashed side by side. Only the last compression, the root's, must be told apart. */
#include "blake3.h"

#include "blake3_lanes.h"

enum { LANES_MIN = 3 }; /* so many nodes cost more one by one */
enum { BATCH_CHUNKS = REE_BLAKE3_GROUP_CHUNKS_MAX, BATCH_BYTES = BATCH_CHUNKS * CHUNK_BYTES };

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/* -- one node ----------------------------------------------------------------------------- */

/* A node's last compression, not done yet: it gives its chaining value or, of the root, any number of bytes. */
typedef struct {
    uint32_t cv[8];
    uint8_t block[BLOCK_BYTES];
    uint64_t counter;
    uint32_t n_bytes, flags;
} node;

static node chunk_node(const ree_blake3_mode *mode, const uint8_t *data, int64_t n_bytes, int64_t chunk)
{
    node x = {.counter = (uint64_t)chunk, .flags = mode->flags | CHUNK_START};
    memcpy(x.cv, mode->key, CV_BYTES);
    for (; n_bytes > BLOCK_BYTES; data += BLOCK_BYTES, n_bytes -= BLOCK_BYTES) {
        uint32_t words[16];
        compress(x.cv, data, x.counter, BLOCK_BYTES, x.flags, words);
        memcpy(x.cv, words, CV_BYTES);
        x.flags = mode->flags;
    }
    if (n_bytes)
        memcpy(x.block, data, (size_t)n_bytes);
    x.n_bytes = (uint32_t)n_bytes;
    x.flags |= CHUNK_END;
    return x;
}

static node parent_node(const ree_blake3_mode *mode, const uint8_t *children)
{
    node x = {.n_bytes = BLOCK_BYTES, .flags = mode->flags | PARENT};
    memcpy(x.cv, mode->key, CV_BYTES);
    memcpy(x.block, children, BLOCK_BYTES);
    return x;
}

static void node_cv(const node *x, uint8_t *out)
{
    uint32_t words[16];
    compress(x->cv, x->block, x->counter, x->n_bytes, x->flags, words);
    memcpy(out, words, CV_BYTES);
}

static void root_output(const node *x, uint64_t seek, uint8_t *out, int64_t n)
{
    while (n > 0) {
        uint32_t words[16];
        const int64_t skip = (int64_t)(seek % BLOCK_BYTES), take = smaller(BLOCK_BYTES - skip, n);
        compress(x->cv, x->block, seek / BLOCK_BYTES, x->n_bytes, x->flags | ROOT, words);
        memcpy(out, (const uint8_t *)words + skip, (size_t)take);
        out += take;
        seek += (uint64_t)take;
        n -= take;
    }
}

/* -- many nodes --------------------------------------------------------------------------- */

static __attribute__((noinline)) void run_lanes(const lanes_inputs *x, uint8_t *out)
{
    if (x->n <= W)
        compress_lanes(x, 1, out);
    else
        compress_lanes(x, REE_STREAMS, out);
}

/* Chaining values of chunks; the last may be short. Returns how many. */
static int64_t chunk_cvs(const ree_blake3_mode *mode, const uint8_t *data, int64_t n_bytes, int64_t chunk,
                         uint8_t *out)
{
    const int64_t n = ceil_div(n_bytes, CHUNK_BYTES), whole = n_bytes / CHUNK_BYTES;
    int64_t i = 0;
    while (whole - i >= LANES_MIN) {
        const lanes_inputs x = {.data = data + i * CHUNK_BYTES, .stride = CHUNK_BYTES,
                                .n = smaller(LANES_MAX, whole - i), .blocks = CHUNK_BYTES / BLOCK_BYTES,
                                .key = mode->key, .counter = (uint64_t)(chunk + i), .count = 1,
                                .flags = mode->flags, .start = CHUNK_START, .end = CHUNK_END};
        run_lanes(&x, out + i * CV_BYTES);
        i += x.n;
    }
    for (; i < n; i++) {
        const node x = chunk_node(mode, data + i * CHUNK_BYTES, smaller(CHUNK_BYTES, n_bytes - i * CHUNK_BYTES),
                                  chunk + i);
        node_cv(&x, out + i * CV_BYTES);
    }
    return n;
}

/* One level up, as ree_blake3_parents; returns how many are left. */
static int64_t join(const ree_blake3_mode *mode, const uint8_t *cvs, int64_t n, uint8_t *out)
{
    const int64_t pairs = n / 2;
    int64_t i = 0;
    while (pairs - i >= LANES_MIN) {
        const lanes_inputs x = {.data = cvs + i * BLOCK_BYTES, .stride = BLOCK_BYTES,
                                .n = smaller(LANES_MAX, pairs - i), .blocks = 1, .key = mode->key,
                                .flags = mode->flags | PARENT};
        run_lanes(&x, out + i * CV_BYTES);
        i += x.n;
    }
    for (; i < pairs; i++) {
        const node x = parent_node(mode, cvs + i * BLOCK_BYTES);
        node_cv(&x, out + i * CV_BYTES);
    }
    if (n % 2)
        memmove(out + pairs * CV_BYTES, cvs + 2 * pairs * CV_BYTES, CV_BYTES);
    return pairs + n % 2;
}

/* Chaining values of the subtrees of group_chunks in at most BATCH_BYTES, but never fewer than `least`; cvs has room
 * for those of all chunks. Returns how many. */
static int64_t subtree_cvs(const ree_blake3_mode *mode, const uint8_t *data, int64_t n_bytes, int64_t chunk,
                           int64_t group_chunks, int64_t least, uint8_t *cvs)
{
    int64_t n = chunk_cvs(mode, data, n_bytes, chunk, cvs);
    for (; group_chunks > 1 && n > least; group_chunks /= 2)
        n = join(mode, cvs, n, cvs);
    return n;
}

/* The root of a whole input of at most BATCH_BYTES. */
static node small_root(const ree_blake3_mode *mode, const uint8_t *data, int64_t n_bytes)
{
    uint8_t cvs[BATCH_CHUNKS * CV_BYTES];
    if (n_bytes <= CHUNK_BYTES)
        return chunk_node(mode, data, n_bytes, 0);
    subtree_cvs(mode, data, n_bytes, 0, BATCH_CHUNKS, 2, cvs);
    return parent_node(mode, cvs);
}

/* -- openings of some chunks ---------------------------------------------------------------- */

typedef struct {
    ree_blake3_mode mode;
    const int64_t *chunks;
    const uint8_t *data;
    int64_t n_bytes;
    const uint8_t *cvs;
    int64_t n_cvs; /* left */
    int is_short;  /* one too many was asked for */
} opening;

static int64_t left_chunks(int64_t n) { return (int64_t)1 << (63 - __builtin_clzll((uint64_t)(n - 1))); }

static int64_t bytes_from(const opening *o, int64_t chunk, int64_t n)
{
    return smaller(n * CHUNK_BYTES, o->n_bytes - chunk * CHUNK_BYTES);
}

/* The first of the opened chunks [low, high) that is not before `chunk`. */
static int64_t first_from(const opening *o, int64_t low, int64_t high, int64_t chunk)
{
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (o->chunks[middle] < chunk)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void opened_children(opening *o, int64_t first, int64_t n, int64_t low, int64_t high, uint8_t *children);

/* The chaining value of the n chunks from `first` on, of which those numbered [low, high) are opened. */
static void opened_cv(opening *o, int64_t first, int64_t n, int64_t low, int64_t high, uint8_t *cv)
{
    const uint8_t *data = o->data + low * CHUNK_BYTES;
    if (low == high) {
        if (o->n_cvs-- > 0)
            memcpy(cv, o->cvs, CV_BYTES);
        else
            o->is_short = 1;
        o->cvs += CV_BYTES;
    } else if (n == 1) {
        const node x = chunk_node(&o->mode, data, bytes_from(o, first, 1), first);
        node_cv(&x, cv);
    } else if (high - low == n && n <= BATCH_CHUNKS) {
        uint8_t cvs[BATCH_CHUNKS * CV_BYTES];
        subtree_cvs(&o->mode, data, bytes_from(o, first, n), first, BATCH_CHUNKS, 1, cvs);
        memcpy(cv, cvs, CV_BYTES);
    } else {
        uint8_t children[BLOCK_BYTES];
        opened_children(o, first, n, low, high, children);
        const node x = parent_node(&o->mode, children);
        node_cv(&x, cv);
    }
}

static void opened_children(opening *o, int64_t first, int64_t n, int64_t low, int64_t high, uint8_t *children)
{
    const int64_t left = left_chunks(n), middle = first_from(o, low, high, first + left);
    memset(children, 0, BLOCK_BYTES);
    opened_cv(o, first, left, low, middle, children);
    opened_cv(o, first + left, n - left, middle, high, children + CV_BYTES);
}

int ree_blake3_opening_root(const int64_t *chunks, int64_t n_chunks, const uint8_t *data, int64_t n_bytes,
                            const uint8_t *cvs, int64_t n_cvs, uint8_t *out)
{
    opening o = {.chunks = chunks, .data = data, .n_bytes = n_bytes, .cvs = cvs, .n_cvs = n_cvs};
    const int64_t n = n_bytes ? ceil_div(n_bytes, CHUNK_BYTES) : 1;
    node root;
    ree_blake3_set_mode(&o.mode, NULL, 0);
    if (n == 1) {
        root = chunk_node(&o.mode, data, n_bytes, 0);
    } else {
        uint8_t children[BLOCK_BYTES];
        opened_children(&o, 0, n, 0, n_chunks, children);
        root = parent_node(&o.mode, children);
    }
    root_output(&root, 0, out, CV_BYTES);
    return o.is_short || o.n_cvs != 0;
}

/* -- steps of a plan ---------------------------------------------------------------------- */

int64_t ree_blake3_group_count(int64_t n_bytes, int64_t group_chunks)
{
    return n_bytes ? ceil_div(n_bytes, group_chunks * CHUNK_BYTES) : 1;
}

void ree_blake3_groups(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_blake3_args *a = args;
    const int64_t per_batch = BATCH_CHUNKS / a->group_chunks, group_bytes = a->group_chunks * CHUNK_BYTES;
    uint8_t cvs[BATCH_CHUNKS * CV_BYTES];
    (void)r0, (void)r1, (void)scratch;
    for (int64_t g = c0; g < c1; g += per_batch) {
        const int64_t end = smaller(a->n_bytes, smaller(c1, g + per_batch) * group_bytes);
        const int64_t chunk = a->first_chunk + g * a->group_chunks;
        int64_t n;
        if (end > g * group_bytes) {
            n = subtree_cvs(&a->mode, a->data + g * group_bytes, end - g * group_bytes, chunk, a->group_chunks, 1, cvs);
        } else { /* the empty input is one empty chunk */
            const node x = chunk_node(&a->mode, a->data, 0, chunk);
            node_cv(&x, cvs);
            n = 1;
        }
        memcpy(a->cvs + g * CV_BYTES, cvs, (size_t)(n * CV_BYTES));
    }
}

int64_t ree_blake3_root_scratch_bytes(int64_t n_groups) { return (n_groups + 1) / 2 * CV_BYTES; }

void ree_blake3_root(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_blake3_args *a = args;
    int64_t n = ree_blake3_group_count(a->n_bytes, a->group_chunks);
    const uint8_t *cvs = a->cvs;
    (void)r0, (void)r1, (void)c0, (void)c1;
    while (n > 2) {
        n = join(&a->mode, cvs, n, scratch);
        cvs = scratch;
    }
    const node root = n == 2 ? parent_node(&a->mode, cvs) : small_root(&a->mode, a->data, a->n_bytes);
    root_output(&root, 0, a->out, a->out_bytes);
}

void ree_blake3_roots(const void *args, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *scratch)
{
    const ree_blake3_args *const *inputs = args;
    for (int64_t r = r0; r < r1; r++)
        ree_blake3_root(inputs[r], 0, 1, c0, c1, scratch);
}

/* -- for callers in Python ---------------------------------------------------------------- */

void ree_blake3_set_mode(ree_blake3_mode *mode, const uint8_t *key, uint32_t flags)
{
    memcpy(mode->key, key ? (const void *)key : blake3_iv, CV_BYTES);
    mode->flags = flags;
}

void ree_blake3_hash(const ree_blake3_mode *mode, const uint8_t *data, int64_t n_bytes, uint8_t *out,
                     int64_t out_bytes)
{
    if (n_bytes <= BATCH_BYTES) {
        const node root = small_root(mode, data, n_bytes);
        root_output(&root, 0, out, out_bytes);
        return;
    }
    ree_blake3_hasher hasher;
    ree_blake3_start(&hasher, mode);
    ree_blake3_update(&hasher, data, n_bytes);
    ree_blake3_finish(&hasher, 0, out, out_bytes);
}

static void node_out(const node *x, int is_root, uint8_t *out)
{
    if (is_root)
        root_output(x, 0, out, CV_BYTES);
    else
        node_cv(x, out);
}

void ree_blake3_chunk(const ree_blake3_mode *mode, const uint8_t *data, int64_t n_bytes, int64_t chunk, int is_root,
                      uint8_t *out)
{
    const node x = chunk_node(mode, data, n_bytes, chunk);
    node_out(&x, is_root, out);
}

void ree_blake3_parent(const ree_blake3_mode *mode, const uint8_t *children, int is_root, uint8_t *out)
{
    const node x = parent_node(mode, children);
    node_out(&x, is_root, out);
}

void ree_blake3_parents(const ree_blake3_mode *mode, const uint8_t *cvs, int64_t n, uint8_t *out)
{
    join(mode, cvs, n, out);
}

/* -- increments --------------------------------------------------------------------------- */

void ree_blake3_start(ree_blake3_hasher *h, const ree_blake3_mode *mode)
{
    h->mode = *mode;
    h->chunks = h->open_bytes = h->depth = 0;
}

/* Join what is complete: the stack then has a subtree for each bit of `chunks`. It is put off until more input
 * follows, since the last join may be the root. */
static void join_stack(ree_blake3_hasher *h)
{
    for (; h->depth > __builtin_popcountll((uint64_t)h->chunks); h->depth--) {
        uint8_t *top = h->stack + (h->depth - 2) * CV_BYTES;
        const node x = parent_node(&h->mode, top);
        node_cv(&x, top);
    }
}

static void push_subtree(ree_blake3_hasher *h, const uint8_t *cv, int64_t chunks)
{
    join_stack(h);
    memcpy(h->stack + h->depth++ * CV_BYTES, cv, CV_BYTES);
    h->chunks += chunks;
}

/* More input follows the open chunk, if there is one: it is full. */
static void close_chunk(ree_blake3_hasher *h)
{
    uint8_t cv[CV_BYTES];
    if (h->open_bytes == 0)
        return;
    const node x = chunk_node(&h->mode, h->open, h->open_bytes, h->chunks);
    node_cv(&x, cv);
    push_subtree(h, cv, 1);
    h->open_bytes = 0;
}

/* The largest subtree that may start at the next chunk and fits n_bytes, at least one chunk. */
static int64_t next_subtree(const ree_blake3_hasher *h, int64_t n_bytes)
{
    int64_t chunks = BATCH_CHUNKS;
    while (chunks > n_bytes / CHUNK_BYTES || h->chunks % chunks)
        chunks /= 2;
    return chunks;
}

void ree_blake3_update(ree_blake3_hasher *h, const uint8_t *data, int64_t n_bytes)
{
    uint8_t cvs[BATCH_CHUNKS * CV_BYTES];
    if (h->open_bytes) {
        const int64_t take = smaller(CHUNK_BYTES - h->open_bytes, n_bytes);
        memcpy(h->open + h->open_bytes, data, (size_t)take);
        h->open_bytes += take;
        data += take;
        n_bytes -= take;
    }
    if (n_bytes == 0)
        return;
    close_chunk(h);
    while (n_bytes > CHUNK_BYTES) {
        /* halves, not the whole, of a subtree: they may be the root's children */
        const int64_t chunks = next_subtree(h, n_bytes), half = chunks > 1 ? chunks / 2 : 1;
        const int64_t n = subtree_cvs(&h->mode, data, chunks * CHUNK_BYTES, h->chunks, half, 1, cvs);
        for (int64_t i = 0; i < n; i++)
            push_subtree(h, cvs + i * CV_BYTES, half);
        data += chunks * CHUNK_BYTES;
        n_bytes -= chunks * CHUNK_BYTES;
    }
    if (n_bytes) {
        join_stack(h);
        memcpy(h->open, data, (size_t)n_bytes);
        h->open_bytes = n_bytes;
    }
}

void ree_blake3_push(ree_blake3_hasher *h, const uint8_t *cvs, int64_t n, int64_t group_chunks)
{
    close_chunk(h);
    for (int64_t i = 0; i < n; i++)
        push_subtree(h, cvs + i * CV_BYTES, group_chunks);
}

void ree_blake3_finish(const ree_blake3_hasher *h, uint64_t seek, uint8_t *out, int64_t n)
{
    int64_t depth = h->depth;
    node x;
    if (h->open_bytes || depth == 0) {
        x = chunk_node(&h->mode, h->open, h->open_bytes, h->chunks);
    } else {
        depth -= 2;
        x = parent_node(&h->mode, h->stack + depth * CV_BYTES);
    }
    while (depth > 0) {
        uint8_t children[BLOCK_BYTES];
        memcpy(children, h->stack + --depth * CV_BYTES, CV_BYTES);
        node_cv(&x, children + CV_BYTES);
        x = parent_node(&h->mode, children);
    }
    root_output(&x, seek, out, n);
}
