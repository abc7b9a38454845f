/* One group of one row at a time, in two or three passes, during which it stays in the first-level cache. */
#include "modules/norm.h"

#include <math.h>

#include "common/load.h"
#include "common/row_sums.h"

enum { KEPT = 1024 }; /* channels of a group whose first pass is kept for the second */

#define READ(p, i, dtype) (m == MN_W ? vf_read(p, i, dtype) : vf_read_n(p, i, m, dtype))
#define WRITE(p, i, x, dtype) (m == MN_W ? vf_write(p, i, x, dtype) : vf_write_n(p, i, x, m, dtype))

/* CALL for every vector of a group of d channels: m channels from j on; m is a constant except in the last call. */
#define EACH_VECTOR(d, CALL)                            \
    do {                                                \
        int64_t j = 0;                                  \
        for (const int64_t m = MN_W; j + m <= (d); j += m) CALL; \
        if (j < (d)) {                                  \
            const int64_t m = (d) - j;                  \
            CALL;                                       \
        }                                               \
    } while (0)

/* The places of a group in h, g and dy, in results, and in the parameters; and its mean and rstd. */
typedef struct {
    int64_t h, g, dy, out, dg, c;
    float mean, rstd, along, level;
} place;

MN_INLINE vf first(vf x, int64_t m) { /* the first m, else 0 */
    if (m == MN_W) return x;
    float part[MN_W] = {0};
    vf_store_n(part, x, m);
    return vf_load(part);
}

MN_INLINE vf activate(vf g, int gate) {
    if (gate == MN_SILU) return g / (1.0f + vf_exp(-g));
    return vf_sigmoid(g);
}

MN_INLINE vf unit(const mn_norm *a, const place *p, int64_t j, int64_t m, int dtype) {
    return (READ(a->h, p->h + j, dtype) - p->mean) * p->rstd;
}

MN_INLINE void add_square(const mn_norm *a, const place *p, vf *sum, int64_t j, int64_t m, int dtype) {
    vf x = first(READ(a->h, p->h + j, dtype) - p->mean, m);
    *sum += x * x;
}

MN_INLINE void write_result(const mn_norm *a, const place *p, int64_t j, int64_t m, int dtype, int gate) {
    vf x = unit(a, p, j, m, dtype);
    if (a->weight) x *= READ(a->weight, p->c + j, MN_F32);
    if (a->bias) x += READ(a->bias, p->c + j, MN_F32);
    if (gate) x *= activate(READ(a->g, p->g + j, a->g_dtype), gate);
    WRITE(a->y, p->out + j, x, a->y_dtype);
}

MN_INLINE place place_of(const mn_norm *a, int64_t row, int64_t group, int64_t d) {
    int64_t c = group * d;
    return (place){row * a->h_row + c, row * a->g_row + c, row * a->dy_row + c, row * a->D + c,
                   row * a->dg_row + c, c, 0, 1, 0, 0};
}

MN_INLINE void forward_group(const mn_norm *a, int64_t row, int64_t group, int dtype, int gate, int centred) {
    int64_t d = a->D / a->groups;
    place p = place_of(a, row, group, d);
    vf sum = vf_set(0), squares = vf_set(0);
    if (centred) {
        EACH_VECTOR(d, sum += READ(a->h, p.h + j, dtype));
        p.mean = mn_sum(sum) / (float)d;
        if (a->mean) a->mean[row * a->groups + group] = p.mean;
    }
    EACH_VECTOR(d, add_square(a, &p, &squares, j, m, dtype));
    p.rstd = 1.0f / sqrtf(mn_sum(squares) / a->divisor + a->eps);
    if (a->rstd) a->rstd[row * a->groups + group] = p.rstd;
    EACH_VECTOR(d, write_result(a, &p, j, m, dtype, gate));
}

MN_INLINE void forward_rows(const mn_norm *a, int64_t begin, int64_t end, int dtype, int gate, int centred) {
    for (int64_t row = begin; row < end; row++)
        for (int64_t group = 0; group < a->groups; group++) forward_group(a, row, group, dtype, gate, centred);
}

void MN_VARIANT(norm_forward)(const mn_norm *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    if (a->h_dtype != MN_F32 || a->centred) forward_rows(a, begin, end, a->h_dtype, a->gate, a->centred);
    else if (a->gate == MN_SILU) forward_rows(a, begin, end, MN_F32, MN_SILU, 0);
    else forward_rows(a, begin, end, MN_F32, a->gate, 0);
}

/* First pass of the backward: gradients of the gate and of the parameters, and the sums that the second pass needs; the
 * gradient of the unit goes to `kept`, which may be NULL. */
MN_INLINE void first_pass(const mn_norm *a, const place *p, float *own, float *kept, vf *share, vf *total, int64_t j,
                          int64_t m, int dtype, int gate) {
    vf normal = unit(a, p, j, m, dtype), dn = READ(a->dy, p->dy + j, a->dy_dtype);
    vf weight = a->weight ? READ(a->weight, p->c + j, MN_F32) : vf_set(1);
    if (gate) {
        vf g = READ(a->g, p->g + j, a->g_dtype), open = vf_sigmoid(g), act = gate == MN_SILU ? g : vf_set(1);
        if (a->dg) {
            vf n = normal * weight, slope = 1.0f - open;
            if (a->bias) n += READ(a->bias, p->c + j, MN_F32);
            if (gate == MN_SILU) slope = 1.0f + g * slope;
            WRITE(a->dg, p->dg + j, dn * n * open * slope, a->g_dtype);
        }
        dn *= act * open;
    }
    if (own) {
        WRITE(own, p->c + j, READ(own, p->c + j, MN_F32) + dn * normal, MN_F32);
        if (a->bias) WRITE(own, a->D + p->c + j, READ(own, a->D + p->c + j, MN_F32) + dn, MN_F32);
    }
    dn = first(dn * weight, m);
    if (kept) vf_store(kept + j, dn);
    *share += dn * first(normal, m);
    *total += dn;
}

MN_INLINE void second_pass(const mn_norm *a, const place *p, const float *kept, int64_t j, int64_t m, int dtype, int gate) {
    vf dn = kept ? vf_load(kept + j) : READ(a->dy, p->dy + j, a->dy_dtype);
    if (!kept && gate) dn *= activate(READ(a->g, p->g + j, a->g_dtype), gate);
    if (!kept && a->weight) dn *= READ(a->weight, p->c + j, MN_F32);
    WRITE(a->y, p->out + j, p->rstd * (dn - p->level - unit(a, p, j, m, dtype) * p->along), dtype);
}

MN_INLINE void backward_group(const mn_norm *a, int64_t row, int64_t group, float *own, int dtype, int gate, int centred) {
    int64_t d = a->D / a->groups;
    float room[KEPT + MN_W], *kept = d <= KEPT ? room : NULL;
    place p = place_of(a, row, group, d);
    vf share = vf_set(0), total = vf_set(0);
    p.rstd = a->rstd[row * a->groups + group];
    if (centred) p.mean = a->mean[row * a->groups + group];
    EACH_VECTOR(d, first_pass(a, &p, own, kept, &share, &total, j, m, dtype, gate));
    if (!a->y) return;
    p.along = mn_sum(share) / a->divisor;
    if (centred) p.level = mn_sum(total) / (float)d;
    EACH_VECTOR(d, second_pass(a, &p, kept, j, m, dtype, gate));
}

MN_INLINE void backward_rows(const mn_norm *a, int64_t begin, int64_t end, float *own, int dtype, int gate, int centred) {
    for (int64_t row = begin; row < end; row++)
        for (int64_t group = 0; group < a->groups; group++) backward_group(a, row, group, own, dtype, gate, centred);
}

/* Blocks begin .. end of rows. */
void MN_VARIANT(norm_backward)(const mn_norm *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    for (int64_t i = begin; i < end; i++) {
        int64_t from = i * a->block, to = mn_min(from + a->block, a->rows);
        float *own = a->partial ? a->partial + i * 2 * a->D : NULL;
        if (own) memset(own, 0, (size_t)(2 * a->D) * 4);
        if (a->h_dtype != MN_F32 || a->centred) backward_rows(a, from, to, own, a->h_dtype, a->gate, a->centred);
        else if (a->gate == MN_SILU) backward_rows(a, from, to, own, MN_F32, MN_SILU, 0);
        else backward_rows(a, from, to, own, MN_F32, a->gate, 0);
    }
}
