/* The packed format of groups.py on a CPU, in one pass over a group while it is in the cache: the same bits.

   Written for the auto-vectorizer: plain loops, no branch inside them. Compile without contraction of products and sums
   (-ffp-contract=off) and without fast-math; cpu_kernels.py does. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define FRACTION_BITS 17
#define LARGEST_RANGE 3e38f
#define LEAST_STEP 1.17549435e-38f    /* 2^-126 */
#define SMALL_STEP 5.4210108624e-20f  /* 2^-64 */
#define LONGEST 4096                  /* numbers of a group at most */

static inline int32_t bits_of(float x) { int32_t b; memcpy(&b, &x, 4); return b; }
static inline float value_of(uint32_t b) { float x; memcpy(&x, &b, 4); return x; }
static inline float upper_half(int32_t b) { return value_of((uint32_t)b << 16); }

static inline uint32_t hashed(uint32_t counter, uint32_t first, uint32_t second) {
    uint32_t w = counter ^ first;
    w = (w ^ (w >> 16)) * 0x7FEB352Du;
    w += second;
    w = (w ^ (w >> 15)) * 0x846CA68Bu;
    return w ^ (w >> 16);
}

typedef struct { float low, up, scale, limit; } Scaling;

static inline int32_t coded(float x, int32_t noise, Scaling s, int sparse) {
    float scaled = (x - s.low) * s.up * s.scale;
    scaled = scaled > 0.0f ? scaled : 0.0f;  /* NaN, too, becomes 0 */
    scaled = scaled < s.limit ? scaled : s.limit;
    int32_t code = ((int32_t)scaled + 2 * noise + 1) >> FRACTION_BITS;
    return sparse ? (x > 0.0f ? code + 1 : 0) : code;
}

/* one group; `sparse` and `bits` are constants where this is called */
static inline __attribute__((always_inline)) void code_group(
    const float *restrict x, uint8_t *restrict codes, int size, uint32_t counter, uint32_t first, uint32_t second,
    Scaling s, int sparse, int bits) {
    const int half = size / 2, width = size * bits / 8;
    if (bits == 8) {
        for (int i = 0; i < half; i++) {
            uint32_t w = hashed(counter + (uint32_t)i, first, second);
            codes[i] = (uint8_t)coded(x[i], (int32_t)(w & 0xFFFF), s, sparse);
            codes[i + half] = (uint8_t)coded(x[i + half], (int32_t)(w >> 16), s, sparse);
        }
    } else if (bits == 4) {
        for (int i = 0; i < half; i++) {
            uint32_t w = hashed(counter + (uint32_t)i, first, second);
            int32_t code = coded(x[i], (int32_t)(w & 0xFFFF), s, sparse);
            codes[i] = (uint8_t)(code | coded(x[i + half], (int32_t)(w >> 16), s, sparse) << 4);
        }
    } else {
        for (int i = 0; i < width; i++) {
            uint32_t v = hashed(counter + (uint32_t)i, first, second);
            uint32_t w = hashed(counter + (uint32_t)(i + width), first, second);
            int32_t code = coded(x[i], (int32_t)(v & 0xFFFF), s, sparse);
            code |= coded(x[i + width], (int32_t)(w & 0xFFFF), s, sparse) << 2;
            code |= coded(x[i + 2 * width], (int32_t)(v >> 16), s, sparse) << 4;
            codes[i] = (uint8_t)(code | coded(x[i + 3 * width], (int32_t)(w >> 16), s, sparse) << 6);
        }
    }
}

static void encode_group(const float *restrict x, uint8_t *restrict codes, int16_t *restrict meta, int size, int bits,
                         int zero_exact, uint32_t counter, uint32_t first, uint32_t second) {
    const int levels = (1 << bits) - 1;
    /* floats are ordered like integers, once the bits of negative ones are turned over; NaN is above infinity */
    int32_t least_key = INT32_MAX, largest_key = INT32_MIN, magnitude = 0;
    uint32_t positive = UINT32_MAX;
    for (int i = 0; i < size; i++) {
        int32_t b = bits_of(x[i]), m = b & 0x7FFFFFFF, key = b ^ (b >> 31 & 0x7FFFFFFF);
        least_key = key < least_key ? key : least_key;
        largest_key = key > largest_key ? key : largest_key;
        magnitude = m > magnitude ? m : magnitude;
        uint32_t less_one = (uint32_t)b - 1u;  /* zero and what is negative become larger than any positive */
        positive = less_one < positive ? less_one : positive;
    }
    const int any_bad = magnitude > 0x7F800000;
    float low = value_of((uint32_t)(least_key ^ (least_key >> 31 & 0x7FFFFFFF)));
    float high = value_of((uint32_t)(largest_key ^ (largest_key >> 31 & 0x7FFFFFFF)));
    if (low == 0.0f) low = 0.0f;  /* not -0 */
    const float least = low;
    const int equal = low == high;
    const int sparse = zero_exact && !any_bad && low == 0.0f && high > 0.0f;
    float intervals = (float)levels, reciprocal = (float)(1.0 / levels);
    if (sparse) {
        low = value_of(positive + 1u);
        intervals = (float)(levels - 1);
        reciprocal = (float)(1.0 / (levels - 1));
    }
    const int finite = !any_bad && high - low < LARGEST_RANGE;
    int32_t low_bits = bits_of(finite ? low : 0.0f);
    low_bits = (low_bits < 0 ? low_bits + 0xFFFF : low_bits) >> 16;
    low = upper_half(low_bits);
    low = low < -FLT_MAX ? -FLT_MAX : low;
    float step = finite ? (high - low) * reciprocal : INFINITY;
    step = step > 0.0f && step < LEAST_STEP ? LEAST_STEP : step;
    int32_t step_bits = (bits_of(step) + 0xFFFF) >> 16;
    if (equal && finite) step_bits = 0;
    step = upper_half(step_bits);
    Scaling s;
    s.low = low;
    s.up = step < SMALL_STEP ? 1.0f / SMALL_STEP : 1.0f;
    s.scale = step > 0.0f ? 131072.0f / (step * s.up) : 0.0f;
    s.limit = intervals * 131072.0f;
    const int width = size * bits / 8;
    if (step_bits == 0 && !sparse) {  /* all equal: the number itself */
        low_bits = bits_of(least) >> 16;
        memset(codes, 0, (size_t)width);
        codes[0] = (uint8_t)(bits_of(least) & 0xFF);
        codes[1] = (uint8_t)(bits_of(least) >> 8 & 0xFF);
    } else if (sparse) {
        if (bits == 8) code_group(x, codes, size, counter, first, second, s, 1, 8);
        else if (bits == 4) code_group(x, codes, size, counter, first, second, s, 1, 4);
        else code_group(x, codes, size, counter, first, second, s, 1, 2);
    } else {
        if (bits == 8) code_group(x, codes, size, counter, first, second, s, 0, 8);
        else if (bits == 4) code_group(x, codes, size, counter, first, second, s, 0, 4);
        else code_group(x, codes, size, counter, first, second, s, 0, 2);
    }
    meta[0] = (int16_t)low_bits;
    meta[1] = (int16_t)(sparse ? step_bits - 0x8000 : step_bits);
}

static inline __attribute__((always_inline)) void decode_group(
    const uint8_t *restrict codes, float *restrict x, int size, float low, float step, float largest, int sparse,
    int bits) {
    const int width = size * bits / 8, slots = 8 / bits, mask = (1 << bits) - 1;
    for (int k = 0; k < slots; k++)
        for (int i = 0; i < width; i++) {
            int32_t code = codes[i] >> (k * bits) & mask;
            int32_t steps = code - sparse;
            float v = low + (float)(steps < 0 ? 0 : steps) * step;
            v = v > largest ? largest : v;  /* NaN stays */
            v = v < -largest ? -largest : v;
            x[k * width + i] = sparse ? (code == 0 ? 0.0f : v) : v;
        }
}

static void decode_one(const uint8_t *restrict codes, const int16_t *restrict meta, float *restrict x, int size,
                       int bits, float largest) {
    const int32_t step_bits = meta[1];
    const int sparse = step_bits < 0;
    const float step = upper_half(step_bits & 0x7FFF);
    float low = upper_half(meta[0]);
    low = low < -FLT_MAX ? -FLT_MAX : low;
    if (step_bits == 0) {
        float v = value_of((uint32_t)(int32_t)meta[0] << 16 | (uint32_t)codes[0] | (uint32_t)codes[1] << 8);
        v = v > largest ? largest : v;
        v = v < -largest ? -largest : v;
        for (int i = 0; i < size; i++) x[i] = v;
    } else if (sparse) {
        if (bits == 8) decode_group(codes, x, size, low, step, largest, 1, 8);
        else if (bits == 4) decode_group(codes, x, size, low, step, largest, 1, 4);
        else decode_group(codes, x, size, low, step, largest, 1, 2);
    } else {
        if (bits == 8) decode_group(codes, x, size, low, step, largest, 0, 8);
        else if (bits == 4) decode_group(codes, x, size, low, step, largest, 0, 4);
        else decode_group(codes, x, size, low, step, largest, 0, 2);
    }
}

/* Groups `from` to `to` of `count` numbers; `brain` numbers are bf16, else fp32. */
void encode(const void *numbers, int brain, int64_t count, int32_t size, int32_t bits, int32_t zero_exact,
            int32_t first, int32_t second, int64_t from, int64_t to, uint8_t *codes, int16_t *meta) {
    float buffer[LONGEST];
    const int64_t width = (int64_t)size * bits / 8;
    for (int64_t g = from; g < to; g++) {
        const int64_t start = g * size;
        const int here = (int)(count - start < size ? count - start : size);
        const float *x = (const float *)numbers + start;
        if (brain) {
            const uint16_t *words = (const uint16_t *)numbers + start;
            for (int i = 0; i < here; i++) buffer[i] = value_of((uint32_t)words[i] << 16);
            x = buffer;
        } else if (here < size) {
            memcpy(buffer, x, (size_t)here * 4);
            x = buffer;
        }
        for (int i = here; i < size; i++) buffer[i] = buffer[here - 1];  /* the last group repeats the last number */
        encode_group(x, codes + g * width, meta + g * 2, size, bits, zero_exact, (uint32_t)(g * (size / 2)),
                     (uint32_t)first, (uint32_t)second);
    }
}

void decode(const uint8_t *codes, const int16_t *meta, int32_t size, int32_t bits, float largest, int64_t count,
            int64_t from, int64_t to, void *numbers, int brain) {
    float buffer[LONGEST];
    const int64_t width = (int64_t)size * bits / 8;
    for (int64_t g = from; g < to; g++) {
        const int64_t start = g * size;
        const int here = (int)(count - start < size ? count - start : size);
        float *x = brain || here < size ? buffer : (float *)numbers + start;
        decode_one(codes + g * width, meta + g * 2, x, size, bits, largest);
        if (brain) {
            uint16_t *words = (uint16_t *)numbers + start;
            for (int i = 0; i < here; i++) {  /* to nearest, ties to even */
                uint32_t b = (uint32_t)bits_of(buffer[i]);
                uint32_t rounded = (b + 0x7FFFu + (b >> 16 & 1u)) >> 16;
                words[i] = (uint16_t)(buffer[i] != buffer[i] ? 0x7FC0u : rounded);
            }
        } else if (here < size) {
            memcpy((float *)numbers + start, buffer, (size_t)here * 4);
        }
    }
}

/* One bit for each of `count` words: whether it is not 0, of either sign. Returns whether all are 0 or `value`. */
#define MARK(NAME, WORD)                                                                                     \
    int32_t NAME(const WORD *restrict words, int64_t count, uint32_t value, uint8_t *restrict marks) {       \
        int32_t others = 0;                                                                                  \
        for (int64_t i = 0; i < (count + 7) / 8; i++) {                                                      \
            const int here = (int)(count - i * 8 < 8 ? count - i * 8 : 8);                                   \
            uint32_t mark = 0;                                                                               \
            for (int k = 0; k < here; k++) {                                                                 \
                const WORD word = words[i * 8 + k];                                                          \
                const uint32_t set = (WORD)(word << 1) != 0;                                                 \
                others |= set & (word != (WORD)value);                                                       \
                mark |= set << k;                                                                            \
            }                                                                                                \
            marks[i] = (uint8_t)mark;                                                                        \
        }                                                                                                    \
        return !others;                                                                                      \
    }
MARK(mark_2, uint16_t)
MARK(mark_4, uint32_t)

/* The words back: `value` where a bit is set, else `otherwise`. */
#define UNMARK(NAME, WORD)                                                                                   \
    void NAME(const uint8_t *restrict marks, int64_t count, uint32_t value, uint32_t otherwise,              \
              WORD *restrict words) {                                                                        \
        const WORD two[2] = {(WORD)otherwise, (WORD)value};                                                  \
        for (int64_t i = 0; i < count / 8; i++)                                                              \
            for (int k = 0; k < 8; k++) words[i * 8 + k] = two[marks[i] >> k & 1];                           \
        for (int64_t i = count / 8 * 8; i < count; i++) words[i] = two[marks[i / 8] >> (i % 8) & 1];         \
    }
UNMARK(unmark_2, uint16_t)
UNMARK(unmark_4, uint32_t)
