/* The sums of a hypergradient (estimate.py) on a CPU, in one pass over gradient, parameter and optimizer state where
   they lie: g . d, |g|^2 and |d|^2 of each parameter group, for the gradient g and the last update's direction d.

   Written for the auto-vectorizer: plain loops over blocks, no branch inside them. Every term is a product of two
   numbers in double precision, added in double precision; the order does not depend on the number of threads. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 128
#define LANES 8

enum { NO_DIRECTION, AS_IT_IS, NESTEROV, ADAM, SCALED };  /* formulas, as in cpu_sums.py */
enum { FLOAT, DOUBLE, BFLOAT };                           /* types of all tensors but the numbers of steps */
enum { SIGN, PENALTY, LR, DECAY, BETA1, BETA2, EPS, MOMENTUM, SETTINGS };  /* of each group */
enum { TENSOR, START, COUNT, PIECE };                                      /* of each piece */
enum { ADDRESSES, TENSORS, OWNERS, VALUES, PIECES, NUMBER, HOW, TYPE, WIDE_STEPS, SUMS, TABLE, GROUPS };  /* of a job */

static inline float from_float(float x) { return x; }
static inline double from_double(double x) { return x; }
static inline float from_bfloat(uint16_t x) { uint32_t b = (uint32_t)x << 16; float y; memcpy(&y, &b, 4); return y; }

#ifdef __FMA__  /* the product of two numbers in single precision is exact: the same bits */
static inline double with_exact(double sum, double x, double y) { return __builtin_fma(x, y, sum); }
#else
static inline double with_exact(double sum, double x, double y) { return sum + x * y; }
#endif
static inline double with_rounded(double sum, double x, double y) { return sum + x * y; }

#define WORK(NAME, STORED, REAL, READ, ROOT, WITH)                                                                     \
static inline __attribute__((always_inline)) void NAME##_block(                                                        \
    const STORED *restrict gradient, const STORED *restrict theta, const STORED *restrict first,                       \
    const STORED *restrict second, int count, int formula, REAL sign, REAL penalty, REAL added, REAL scaled,           \
    REAL *restrict g, REAL *restrict d) {                                                                              \
    for (int i = 0; i < count; i++) g[i] = sign * READ(gradient[i]);                                                   \
    if (penalty != 0) for (int i = 0; i < count; i++) g[i] += penalty * READ(theta[i]);                                \
    if (formula == AS_IT_IS) for (int i = 0; i < count; i++) d[i] = READ(first[i]);                                    \
    if (formula == NESTEROV) for (int i = 0; i < count; i++) d[i] = READ(first[i]) + scaled * READ(second[i]);         \
    if (formula == SCALED) for (int i = 0; i < count; i++) d[i] = READ(first[i]) / scaled;                             \
    if (formula == ADAM) for (int i = 0; i < count; i++) d[i] = READ(first[i]) / (ROOT(READ(second[i])) + added);      \
    if (formula == ADAM && scaled != 0) for (int i = 0; i < count; i++) d[i] += scaled * READ(theta[i]);               \
}                                                                                                                      \
                                                                                                                       \
static inline __attribute__((always_inline)) void NAME##_all(                                                          \
    const STORED *gradient, const STORED *theta, const STORED *first, const STORED *second, int64_t count,             \
    int formula, REAL sign, REAL penalty, REAL added, REAL scaled, double *restrict total) {                           \
    double dot[LANES] = {0}, own[LANES] = {0}, move[LANES] = {0};                                                      \
    REAL g[BLOCK], d[BLOCK];                                                                                           \
    memset(d, 0, sizeof d);                                                                                            \
    for (int64_t at = 0; at < count; at += BLOCK) {                                                                    \
        if (count - at >= BLOCK) {                                                                                     \
            NAME##_block(gradient + at, theta + at, first + at, second + at, BLOCK, formula, sign, penalty, added,     \
                         scaled, g, d);                                                                                \
        } else {                                                                                                       \
            memset(g, 0, sizeof g);                                                                                    \
            memset(d, 0, sizeof d);                                                                                    \
            NAME##_block(gradient + at, theta + at, first + at, second + at, (int)(count - at), formula, sign,         \
                         penalty, added, scaled, g, d);                                                                \
        }                                                                                                              \
        for (int i = 0; i < BLOCK; i += LANES)                                                                         \
            for (int lane = 0; lane < LANES; lane++) {                                                                 \
                double x = g[i + lane], y = d[i + lane];                                                               \
                dot[lane] = WITH(dot[lane], x, y);                                                                     \
                own[lane] = WITH(own[lane], x, x);                                                                     \
                move[lane] = WITH(move[lane], y, y);                                                                   \
            }                                                                                                          \
    }                                                                                                                  \
    for (int lane = 0; lane < LANES; lane++) {                                                                         \
        total[0] += dot[lane];                                                                                         \
        total[1] += own[lane];                                                                                         \
        total[2] += move[lane];                                                                                        \
    }                                                                                                                  \
}                                                                                                                      \
                                                                                                                       \
static void NAME(const STORED *gradient, const STORED *theta, const STORED *first, const STORED *second,               \
                 int64_t count, int formula, double sign, double penalty, double added, double scaled,                 \
                 double *total) {                                                                                      \
    if (formula == ADAM)  /* a constant there: its loops are made for it */                                            \
        NAME##_all(gradient, theta, first, second, count, ADAM, (REAL)sign, (REAL)penalty, (REAL)added, (REAL)scaled,  \
                   total);                                                                                             \
    else                                                                                                               \
        NAME##_all(gradient, theta, first, second, count, formula, (REAL)sign, (REAL)penalty, (REAL)added,             \
                   (REAL)scaled, total);                                                                               \
}

WORK(of_float, float, float, from_float, sqrtf, with_exact)
WORK(of_double, double, double, from_double, sqrt, with_rounded)
WORK(of_bfloat, uint16_t, float, from_bfloat, sqrtf, with_exact)

#define AT(TYPE, KIND) ((const TYPE *)(uintptr_t)addresses[(KIND) * tensors + tensor])
#define CALL(NAME, TYPE)                                                                                               \
    NAME(AT(TYPE, 0) + start, AT(TYPE, 1) + start, AT(TYPE, 2) + start, AT(TYPE, 3) + start, count, formula,           \
         group[SIGN], group[PENALTY], added, scaled, sums)

/* addresses: of the gradients of all tensors, then of parameters, first and second sources, numbers of steps;
   sums: three of each piece, from `begin` to `end` */
void alignment_of_pieces(const int64_t *addresses, int64_t tensors, const int64_t *owners, const double *settings,
                         const int64_t *pieces, int64_t begin, int64_t end, int32_t formula, int32_t type,
                         int32_t steps_are_double, double *all_sums) {
    for (int64_t index = begin; index < end; index++) {
        const int64_t *piece = pieces + PIECE * index, tensor = piece[TENSOR], start = piece[START];
        const int64_t count = piece[COUNT];
        const double *group = settings + SETTINGS * owners[tensor];
        double *sums = all_sums + 3 * index, added = 0, scaled = 0, weight = 1;
        sums[0] = sums[1] = sums[2] = 0;
        if (formula == NESTEROV) scaled = group[MOMENTUM];
        if (formula == SCALED) scaled = group[LR];
        if (formula == ADAM) {
            double steps = steps_are_double ? *AT(double, 4) : *AT(float, 4);
            double root2 = sqrt(1 - pow(group[BETA2], steps)), factor = root2 / (1 - pow(group[BETA1], steps));
            added = root2 * group[EPS];
            scaled = group[DECAY] / factor;
            weight = factor / (1 - group[LR] * group[DECAY]);
        }
        if (type == FLOAT) CALL(of_float, float);
        else if (type == DOUBLE) CALL(of_double, double);
        else CALL(of_bfloat, uint16_t);
        sums[0] *= weight;
        sums[2] *= weight * weight;
    }
}

/* the sums of each group, piece after piece */
void alignment_of_groups(const int64_t *pieces, int64_t count, const int64_t *owners, const double *sums, double *table,
                         int64_t groups) {
    memset(table, 0, (size_t)groups * 3 * sizeof(double));
    for (int64_t index = 0; index < count; index++)
        for (int k = 0; k < 3; k++) table[3 * owners[pieces[PIECE * index + TENSOR]] + k] += sums[3 * index + k];
}

/* both, in this thread; what they are given is kept from update to update */
void alignment(const int64_t *job) {
#define GIVEN(TYPE, PLACE) ((TYPE *)(uintptr_t)job[PLACE])
    alignment_of_pieces(GIVEN(const int64_t, ADDRESSES), job[TENSORS], GIVEN(const int64_t, OWNERS),
                        GIVEN(const double, VALUES), GIVEN(const int64_t, PIECES), 0, job[NUMBER], (int32_t)job[HOW],
                        (int32_t)job[TYPE], (int32_t)job[WIDE_STEPS], GIVEN(double, SUMS));
    alignment_of_groups(GIVEN(const int64_t, PIECES), job[NUMBER], GIVEN(const int64_t, OWNERS),
                        GIVEN(const double, SUMS), GIVEN(double, TABLE), job[GROUPS]);
}
