/* One width of md5_lanes.c, which includes this with LANES (blocks hashed together) and NAMED set. */

typedef uint32_t NAMED(lanes) __attribute__((vector_size(4 * LANES)));

/* Hash LANES blocks of `length` bytes, a multiple of CHUNK; `digests` takes 16 bytes for each. */
FOR_EACH_PROCESSOR
static void NAMED(hash)(const uint8_t *const blocks[LANES], size_t length, uint8_t *digests)
{
    NAMED(lanes) a0 = (NAMED(lanes)){0} + 0x67452301u, b0 = (NAMED(lanes)){0} + 0xefcdab89u;
    NAMED(lanes) c0 = (NAMED(lanes)){0} + 0x98badcfeu, d0 = (NAMED(lanes)){0} + 0x10325476u;
    uint8_t padding[CHUNK] = {0x80};
    uint64_t bits = (uint64_t)length * 8;
    memcpy(padding + 56, &bits, 8);

    for (size_t at = 0; at <= length; at += CHUNK) {
        uint32_t words[CHUNK / 4][LANES];
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t chunk[CHUNK / 4];
            memcpy(chunk, at < length ? blocks[lane] + at : padding, CHUNK);
            for (int k = 0; k < CHUNK / 4; k++)
                words[k][lane] = chunk[k];
        }
        NAMED(lanes) w[CHUNK / 4];
        memcpy(w, words, sizeof w);
        NAMED(lanes) a = a0, b = b0, c = c0, d = d0;

        FOUR(F, 0, 1, 2, 3, 7, 12, 17, 22, 0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee)
        FOUR(F, 4, 5, 6, 7, 7, 12, 17, 22, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501)
        FOUR(F, 8, 9, 10, 11, 7, 12, 17, 22, 0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be)
        FOUR(F, 12, 13, 14, 15, 7, 12, 17, 22, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821)
        FOUR(G, 1, 6, 11, 0, 5, 9, 14, 20, 0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa)
        FOUR(G, 5, 10, 15, 4, 5, 9, 14, 20, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8)
        FOUR(G, 9, 14, 3, 8, 5, 9, 14, 20, 0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed)
        FOUR(G, 13, 2, 7, 12, 5, 9, 14, 20, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a)
        FOUR(H, 5, 8, 11, 14, 4, 11, 16, 23, 0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c)
        FOUR(H, 1, 4, 7, 10, 4, 11, 16, 23, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70)
        FOUR(H, 13, 0, 3, 6, 4, 11, 16, 23, 0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05)
        FOUR(H, 9, 12, 15, 2, 4, 11, 16, 23, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665)
        FOUR(I, 0, 7, 14, 5, 6, 10, 15, 21, 0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039)
        FOUR(I, 12, 3, 10, 1, 6, 10, 15, 21, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1)
        FOUR(I, 8, 15, 6, 13, 6, 10, 15, 21, 0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1)
        FOUR(I, 4, 11, 2, 9, 6, 10, 15, 21, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391)

        a0 += a;
        b0 += b;
        c0 += c;
        d0 += d;
    }
    for (int lane = 0; lane < LANES; lane++) {
        uint32_t state[4] = {a0[lane], b0[lane], c0[lane], d0[lane]};
        memcpy(digests + 16 * lane, state, sizeof state);
    }
}
