/* MD5 (RFC 1321) of many blocks of one length at once.
 *
 * MD5 is one chain of dependent steps: a processor that follows a single one of them idles most of the time.
 * Blocks that are hashed apart from each other can share its vectors, one block to a lane. The container
 * hashes everything by blocks, so this is what its speed hangs on.
 *
 * Built when the package is installed, where there is a compiler; formats/hashing.py does without it as well,
 * and believes it only after holding it against hashlib.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif

#define CHUNK 64 /* bytes */

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#define F(x, y, z) ((z) ^ ((x) & ((y) ^ (z))))
#define G(x, y, z) ((y) ^ ((z) & ((x) ^ (y))))
#define H(x, y, z) ((x) ^ (y) ^ (z))
#define I(x, y, z) ((y) ^ ((x) | ~(z)))
#define STEP(f, a, b, c, d, k, s, t)                                                                       \
    a += f(b, c, d) + w[k] + (uint32_t)(t);                                                                \
    a = ((a << (s)) | (a >> (32 - (s)))) + b;
#define FOUR(f, i, j, k, l, s1, s2, s3, s4, t1, t2, t3, t4)                                                \
    STEP(f, a, b, c, d, i, s1, t1)                                                                         \
    STEP(f, d, a, b, c, j, s2, t2)                                                                         \
    STEP(f, c, d, a, b, k, s3, t3)                                                                         \
    STEP(f, b, c, d, a, l, s4, t4)

#define LANES 8
#define NAMED(name) name##_8
#include "md5_lanes.h"
#undef LANES
#undef NAMED
#define LANES 16
#define NAMED(name) name##_16
#include "md5_lanes.h"

/* Hash `count` blocks of `length` bytes each; returns 0, or -1 for a length that is no multiple of CHUNK. */
int md5_lanes(const uint8_t *const *blocks, size_t count, size_t length, uint8_t *digests)
{
    if (length % CHUNK)
        return -1;
    while (count) {
        const uint8_t *group[16];
        uint8_t found[16 * 16];
        size_t width = count > 8 ? 16 : 8, here = count < width ? count : width;
        for (size_t lane = 0; lane < width; lane++)
            group[lane] = blocks[lane < here ? lane : 0]; /* idle lanes repeat the first */
        (width == 16 ? hash_16 : hash_8)(group, length, found);
        memcpy(digests, found, 16 * here);
        blocks += here;
        digests += 16 * here;
        count -= here;
    }
    return 0;
}
