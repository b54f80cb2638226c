/* Decoders of what Windows compresses by chunks: XPRESS Huffman, LZX as WIM and WOF have it, LZNT1.
 *
 * XPRESS Huffman and LZNT1 follow [MS-XCA] 2.1, 2.2 and 2.5. LZX follows Microsoft's "LZX data compression
 * format" (cabinet SDK) as far as it is the same for WIM: every chunk stands alone, the window is 32 KiB,
 * calls are translated as in a file of 12,000,000 bytes, and neither a header nor frames come before the blocks.
 *
 * Input is never trusted: nothing is read or written outside the buffers, every loop makes output or uses
 * input up, and bits that are not there are an error once they are used.
 *
 * Built when the package is installed, where there is a compiler; formats/unpacking.py does without it as
 * well, and believes it only after a sample of each came out right.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif

#define FAST 10 /* bits of a code word that are looked up at once; longer ones are rarer */
#define LONGEST 16
#define MOST_SYMBOLS 512

static inline uint32_t read16(const uint8_t *p)
{
    uint16_t value;
    memcpy(&value, p, 2);
    return value;
}

static inline uint32_t read32(const uint8_t *p)
{
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

/* --- canonical Huffman codes --- */

struct code {
    uint16_t fast[1 << FAST];         /* symbol << 4 | length by the next bits; 0: a longer word */
    uint32_t limit[LONGEST + 1];      /* by length: what 16 bits that start with a word of it stay below */
    int32_t first[LONGEST + 1];       /* place in `sorted` of what a word of this length is counted from */
    uint16_t sorted[MOST_SYMBOLS];
};

/* Build a code; 0, or -1 where the lengths make no complete one. A code without any word is one. */
static int build(struct code *code, const uint8_t *lengths, unsigned symbols)
{
    unsigned count[LONGEST + 1] = {0}, place[LONGEST + 2];
    uint32_t word = 0; /* the next one, in 16 bits from the left */
    for (unsigned symbol = 0; symbol < symbols; symbol++)
        count[lengths[symbol]]++;
    place[1] = 0;
    for (unsigned length = 1; length <= LONGEST; length++) {
        place[length + 1] = place[length] + count[length];
        code->first[length] = (int32_t)place[length] - (int32_t)(word >> (16 - length));
        word += count[length] << (16 - length);
        if (word > 1u << 16)
            return -1;
        code->limit[length] = word;
    }
    if (word != 1u << 16) {
        memset(code->fast, 0, sizeof code->fast);
        return word ? -1 : 0;
    }
    unsigned next[LONGEST + 2];
    memcpy(next, place, sizeof next);
    for (unsigned symbol = 0; symbol < symbols; symbol++)
        if (lengths[symbol])
            code->sorted[next[lengths[symbol]]++] = (uint16_t)symbol;
    uint16_t *to = code->fast;
    for (unsigned length = 1; length <= FAST; length++)
        for (unsigned at = place[length]; at < place[length + 1]; at++) {
            uint16_t entry = (uint16_t)(code->sorted[at] << 4 | length);
            for (unsigned left = 1u << (FAST - length); left; left--)
                *to++ = entry;
        }
    memset(to, 0, (size_t)((uint8_t *)(code->fast + (1 << FAST)) - (uint8_t *)to));
    return 0;
}

/* Find the symbol of the word that 16 bits start with; symbol << 5 | length, or -1 where there is none. */
static inline int32_t look_up(const struct code *code, uint32_t bits)
{
    uint32_t entry = code->fast[bits >> (16 - FAST)];
    if (entry)
        return (int32_t)((entry >> 4) << 5 | (entry & 15));
    for (unsigned length = FAST + 1; length <= LONGEST; length++)
        if (bits < code->limit[length])
            return (int32_t)((uint32_t)code->sorted[code->first[length] + (int32_t)(bits >> (16 - length))] << 5
                             | length);
    return -1;
}

/* Copy a match inside the output; the caller has checked that it starts and ends there. */
static inline void copy_match(uint8_t *to, size_t distance, size_t length, const uint8_t *end)
{
    const uint8_t *from = to - distance;
    if (distance >= 8 && (size_t)(end - to) >= length + 8) { /* up to 7 bytes too many: they come again */
        uint8_t *stop = to + length;
        do {
            memcpy(to, from, 8);
            to += 8;
            from += 8;
        } while (to < stop);
        return;
    }
    while (length--)
        *to++ = *from++;
}

/* --- XPRESS Huffman --- */

#define XPRESS_SYMBOLS 512
#define XPRESS_TABLE 256 /* bytes of the code's lengths */

/* The bit buffer takes 16 bits as soon as fewer than 16 are left: where lengths, which stand between the units
 * of bits as plain bytes, lie depends on it. */
#define XPRESS_REFILL                                                                                       \
    if (left < 16) {                                                                                        \
        if (end - in >= 2) {                                                                                \
            buffer |= read16(in) << (16 - left);                                                            \
            in += 2;                                                                                        \
        } else {                                                                                            \
            missing += 16;                                                                                  \
        }                                                                                                   \
        left += 16;                                                                                         \
    }

static int xpress_huffman(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size)
{
    const uint8_t *end = in + in_size, *start = out, *out_end = out + out_size;
    struct code code;
    uint8_t lengths[XPRESS_SYMBOLS];
    uint32_t buffer = 0, left = 0, missing = 0;
    if (in_size < XPRESS_TABLE || out_size > 1 << 16)
        return -1;
    for (unsigned at = 0; at < XPRESS_TABLE; at++) {
        lengths[2 * at] = in[at] & 15;
        lengths[2 * at + 1] = in[at] >> 4;
    }
    if (build(&code, lengths, XPRESS_SYMBOLS))
        return -1;
    in += XPRESS_TABLE;
    while (out < out_end) {
        XPRESS_REFILL
        int32_t found = look_up(&code, buffer >> 16);
        if (found < 0)
            return -1;
        uint32_t used = found & 31, symbol = (uint32_t)found >> 5;
        buffer <<= used;
        left -= used;
        if (symbol < 256) {
            *out++ = (uint8_t)symbol;
            continue;
        }
        XPRESS_REFILL
        uint32_t bits = symbol >> 4 & 15;
        size_t distance = (1u << bits) + (bits ? buffer >> (32 - bits) : 0), length = symbol & 15;
        buffer <<= bits;
        left -= bits;
        if (length == 15) {
            if (in == end)
                return -1;
            length += *in++;
            if (length == 15 + 255) {
                if (end - in < 2)
                    return -1;
                length = read16(in);
                in += 2;
                if (length < 15)
                    return -1;
            }
        }
        length += 3;
        if (distance > (size_t)(out - start) || length > (size_t)(out_end - out))
            return -1;
        copy_match(out, distance, length, out_end);
        out += length;
    }
    return left < missing ? -1 : 0; /* bits were used that are not there */
}

/* --- LZX --- */

#define LZX_CHUNK 32768
#define LZX_SLOTS 30 /* position slots of a window of 32 KiB */
#define LZX_MAIN (256 + 8 * LZX_SLOTS)
#define LZX_LENGTHS 249
#define LZX_PRETREE 20
#define LZX_CALL 0xE8
#define LZX_FILE 12000000 /* bytes of the file that calls are translated for */

struct bits {
    const uint8_t *in, *start, *end;
    uint64_t buffer; /* from the left */
    unsigned left;
    uint64_t missing; /* bits in the buffer, or used, that are not in the input */
};

/* Make at least 49 bits available. */
static inline void refill(struct bits *bits)
{
    while (bits->left <= 48) {
        if (bits->end - bits->in >= 2) {
            bits->buffer |= (uint64_t)read16(bits->in) << (48 - bits->left);
            bits->in += 2;
        } else {
            bits->missing += 16;
        }
        bits->left += 16;
    }
}

static inline uint32_t take(struct bits *bits, unsigned count)
{
    if (!count)
        return 0;
    uint32_t value = (uint32_t)(bits->buffer >> (64 - count));
    bits->buffer <<= count;
    bits->left -= count;
    return value;
}

/* Take a symbol, -1 where there is none; 16 bits must be available. */
static inline int32_t take_symbol(struct bits *bits, const struct code *code)
{
    int32_t found = look_up(code, (uint32_t)(bits->buffer >> 48));
    if (found < 0)
        return -1;
    bits->buffer <<= found & 31;
    bits->left -= found & 31;
    return found >> 5;
}

/* Read lengths of a code, which are told as differences from those before. */
static int lzx_lengths(struct bits *bits, struct code *code, uint8_t *lengths, unsigned count)
{
    uint8_t of_pretree[LZX_PRETREE];
    for (unsigned at = 0; at < LZX_PRETREE; at++) {
        refill(bits);
        of_pretree[at] = (uint8_t)take(bits, 4);
    }
    if (build(code, of_pretree, LZX_PRETREE))
        return -1;
    for (unsigned at = 0; at < count;) {
        refill(bits);
        int32_t symbol = take_symbol(bits, code);
        unsigned run = 1, value = 0;
        if (symbol == 17) {
            run = 4 + take(bits, 4);
        } else if (symbol == 18) {
            run = 20 + take(bits, 5);
        } else {
            if (symbol == 19) {
                run = 4 + take(bits, 1);
                symbol = take_symbol(bits, code);
            }
            if (symbol < 0 || symbol > 16)
                return -1;
            value = (lengths[at] + 17u - (unsigned)symbol) % 17;
        }
        if (run > count - at)
            return -1;
        memset(lengths + at, (int)value, run);
        at += run;
    }
    return 0;
}

struct lzx {
    struct bits bits;
    uint32_t recent[3];
    uint8_t main_lengths[LZX_MAIN], length_lengths[LZX_LENGTHS];
    struct code main, lengths, aligned, scratch;
};

/* Decode what follows a verbatim (1) or aligned (2) block's header. */
static int lzx_block(struct lzx *lzx, unsigned type, const uint8_t *start, uint8_t *out, const uint8_t *end,
                     const uint8_t *out_end)
{
    struct bits bits = lzx->bits;
    while (out < end) {
        refill(&bits);
        int32_t symbol = take_symbol(&bits, &lzx->main);
        if (symbol < 0)
            return -1;
        if (symbol < 256) {
            *out++ = (uint8_t)symbol;
            continue;
        }
        uint32_t slot = (uint32_t)(symbol - 256) >> 3, distance, length = symbol & 7;
        if (length == 7) {
            int32_t more = take_symbol(&bits, &lzx->lengths);
            if (more < 0)
                return -1;
            length += (uint32_t)more;
        }
        length += 2;
        if (slot < 3) {
            distance = lzx->recent[slot];
            lzx->recent[slot] = lzx->recent[0];
        } else {
            unsigned extra = slot < 4 ? 0 : slot / 2 - 1;
            distance = slot < 4 ? slot : (2 + (slot & 1)) << extra;
            if (type == 2 && extra >= 3) {
                distance += take(&bits, extra - 3) << 3;
                int32_t low = take_symbol(&bits, &lzx->aligned);
                if (low < 0)
                    return -1;
                distance += (uint32_t)low;
            } else {
                distance += take(&bits, extra);
            }
            distance -= 2;
            lzx->recent[2] = lzx->recent[1];
            lzx->recent[1] = lzx->recent[0];
        }
        lzx->recent[0] = distance;
        if (!distance || distance > (size_t)(out - start) || length > (size_t)(end - out))
            return -1;
        copy_match(out, distance, length, out_end);
        out += length;
    }
    lzx->bits = bits;
    return 0;
}

/* Copy an uncompressed block, behind the end of the 16 bits in which its header ends. */
static int lzx_plain(struct lzx *lzx, uint8_t *out, size_t size)
{
    struct bits *bits = &lzx->bits;
    if (bits->left < bits->missing)
        return -1;
    size_t used = (size_t)(bits->in - bits->start) * 8 + bits->missing - bits->left;
    const uint8_t *in = bits->start + used / 16 * 2 + 2; /* a header that ends with its unit has one more */
    if (in > bits->end || (size_t)(bits->end - in) < 12 || (size_t)(bits->end - in) - 12 < size)
        return -1;
    for (unsigned at = 0; at < 3; at++)
        lzx->recent[at] = read32(in + 4 * at);
    memcpy(out, in + 12, size);
    in += 12 + size;
    if (size & 1 && in < bits->end)
        in++;
    bits->in = in;
    bits->buffer = bits->left = 0;
    bits->missing = 0;
    return 0;
}

/* Make absolute targets of calls relative again. */
static void lzx_untranslate(uint8_t *out, size_t size)
{
    if (size <= 10)
        return;
    for (size_t at = 0; at < size - 10;) {
        const uint8_t *call = memchr(out + at, LZX_CALL, size - 10 - at);
        if (!call)
            return;
        at = (size_t)(call - out);
        int32_t target = (int32_t)read32(out + at + 1), place = (int32_t)at;
        if (target >= 0 ? target < LZX_FILE : target >= -place) {
            int32_t relative = target >= 0 ? target - place : target + LZX_FILE;
            memcpy(out + at + 1, &relative, 4);
        }
        at += 5;
    }
}

static int lzx(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size)
{
    uint8_t *start = out, *out_end = out + out_size;
    struct lzx lzx;
    if (out_size > LZX_CHUNK)
        return -1;
    lzx.bits = (struct bits){in, in, in + in_size, 0, 0, 0};
    lzx.recent[0] = lzx.recent[1] = lzx.recent[2] = 1;
    memset(lzx.main_lengths, 0, sizeof lzx.main_lengths);
    memset(lzx.length_lengths, 0, sizeof lzx.length_lengths);
    while (out < out_end) {
        refill(&lzx.bits);
        unsigned type = take(&lzx.bits, 3);
        size_t size = take(&lzx.bits, 1) ? LZX_CHUNK : take(&lzx.bits, 16);
        if (size > (size_t)(out_end - out) || lzx.bits.left < lzx.bits.missing)
            return -1;
        if (type == 3) {
            if (lzx_plain(&lzx, out, size))
                return -1;
        } else if (type == 1 || type == 2) {
            if (type == 2) {
                uint8_t lengths[8];
                refill(&lzx.bits);
                for (unsigned at = 0; at < 8; at++)
                    lengths[at] = (uint8_t)take(&lzx.bits, 3);
                if (build(&lzx.aligned, lengths, 8))
                    return -1;
            }
            if (lzx_lengths(&lzx.bits, &lzx.scratch, lzx.main_lengths, 256) ||
                lzx_lengths(&lzx.bits, &lzx.scratch, lzx.main_lengths + 256, LZX_MAIN - 256) ||
                build(&lzx.main, lzx.main_lengths, LZX_MAIN) ||
                lzx_lengths(&lzx.bits, &lzx.scratch, lzx.length_lengths, LZX_LENGTHS) ||
                build(&lzx.lengths, lzx.length_lengths, LZX_LENGTHS) ||
                lzx_block(&lzx, type, start, out, out + size, out_end))
                return -1;
        } else {
            return -1;
        }
        out += size;
    }
    if (lzx.bits.left < lzx.bits.missing)
        return -1; /* bits were used that are not there */
    lzx_untranslate(start, out_size);
    return 0;
}

/* --- what is called --- */

/* Decode `count` chunks into `out`, each `chunk` bytes but the last, which has `last`. Chunk n is what lies from
 * edges[n] to edges[n + 1] of `in`; one as long as what it stands for is not compressed. `method`: 0 XPRESS
 * Huffman, 1 LZX. Returns the number of the first chunk that can't be decoded, `count` where all could. */
size_t unpack_chunks(int method, const uint8_t *in, size_t in_size, const uint64_t *edges, size_t count,
                     uint8_t *out, size_t chunk, size_t last)
{
    for (size_t number = 0; number < count; number++, out += chunk) {
        uint64_t from = edges[number], to = edges[number + 1];
        size_t size = number + 1 < count ? chunk : last;
        if (from > to || to > in_size)
            return number;
        if (to - from == size)
            memcpy(out, in + from, size);
        else if ((method ? lzx : xpress_huffman)(in + from, (size_t)(to - from), out, size))
            return number;
    }
    return count;
}

#define LZNT1_CHUNK 4096

/* Decode LZNT1 until the input or a chunk header of 0 ends it, or the output is full. A chunk that others follow
 * is filled up with zeros to 4096 bytes. Returns the bytes made, -1 for what can't be decoded. */
ptrdiff_t unpack_lznt1(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size)
{
    const uint8_t *end = in + in_size;
    uint8_t *start = out, *out_end = out + out_size;
    while (out < out_end && end - in >= 2) {
        uint32_t header = read16(in);
        if (!header)
            break;
        size_t stored = (header & 0xFFF) + 1;
        in += 2;
        if ((header >> 12 & 7) != 3 || stored > (size_t)(end - in))
            return -1;
        size_t filled = (size_t)(out - start) % LZNT1_CHUNK;
        if (filled) { /* the chunk before was short */
            size_t zeros = LZNT1_CHUNK - filled;
            if (zeros >= (size_t)(out_end - out))
                return -1;
            memset(out, 0, zeros);
            out += zeros;
        }
        uint8_t *first = out, *limit = (size_t)(out_end - out) > LZNT1_CHUNK ? out + LZNT1_CHUNK : out_end;
        const uint8_t *stop = in + stored;
        if (!(header & 0x8000)) {
            if (stored > LZNT1_CHUNK)
                return -1;
            size_t size = stored < (size_t)(limit - out) ? stored : (size_t)(limit - out);
            memcpy(out, in, size);
            out += size;
            in = stop;
            continue;
        }
        unsigned split = 12; /* bits of a match's length; the distance has the others */
        while (in < stop && out < limit) {
            unsigned flags = *in++;
            for (unsigned bit = 0; bit < 8 && in < stop && out < limit; bit++, flags >>= 1) {
                if (!(flags & 1)) {
                    *out++ = *in++;
                    continue;
                }
                if (stop - in < 2)
                    return -1;
                uint32_t token = read16(in);
                in += 2;
                size_t made = (size_t)(out - first);
                while (split > 4 && made > (size_t)1 << (16 - split))
                    split--;
                size_t distance = (token >> split) + 1, length = (token & ((1u << split) - 1)) + 3;
                if (distance > made || length > LZNT1_CHUNK - made)
                    return -1;
                if (length > (size_t)(limit - out))
                    length = (size_t)(limit - out); /* all that is wanted */
                copy_match(out, distance, length, limit);
                out += length;
            }
        }
        in = stop;
    }
    return out - start;
}
