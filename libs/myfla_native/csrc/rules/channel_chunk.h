/* Backward of KDA and DPLR, C = MN_TOKENS tokens of a value head at a time, in products of matrices.
 *
 * With E_i the product of a channel's decays from the middle of the chunk to token i (backwards: one over it), reads
 * and writes of tokens become free of decays:
 *
 *     reads   [q E_i; a E_{i-1}]         (KDA: k E_i in the place of a)            2C x K
 *     writes  [b / E_j; k / E_j]         (KDA: k / E_j alone)                      n x K
 *     M = reads writes^T, for j <= i, below the diagonal for a                     2C x n
 *
 * The state S before, and D, the gradient of the state after, refer to the middle too: S' = head S, D' = tail D, where
 * head and tail are the products of the chunk's first and second half. u (DPLR: u, v) are the values of the writes, y
 * the gradients of the sums that a reads:
 *
 *     du = writes D' + M^T [go; y],   y = du  (KDA: -beta du)                      from the last token to the first
 *     dM = [go; y] [u; v]^T;   dreads = [go; y] S' + dM writes;   dwrites = [u; v] D' + dM^T reads
 *     D <- head (tail D + reads^T [go; y])
 *
 * This is accurate as long as no half decays below MN_FAINT; states lie turned, [Vp, Kp]. */
#ifndef MN_CHANNEL_CHUNK_H
#define MN_CHANNEL_CHUNK_H

#include "rules/errands.h"
#include "rules/gradients.h"

enum { MIDDLE = C / 2 - 1 };
#define MN_FAINT 8.7e-19f /* 2^-60 */

typedef struct {
    float *reads, *dreads;             /* [2C, Kp] */
    float *writes, *dwrites, *later;   /* [2C, Kp]; later: the part of dwrites from reads after the chunk */
    float *E, *over_E;                 /* [C, Kp] */
    float *head, *tail, *whole;        /* [Kp] */
    float *inner;                      /* [Kp] sums of S D */
    float *columns;                    /* [Kp, 2C] writes times tail */
    float *out, *in, *back;            /* [Vp, 2C] go and y; u and v; du and dv */
    float M[2 * C * 2 * C], dM[2 * C * 2 * C];
    float along[2 * C];                /* the diagonal of dM, for each kind of write */
    float parts[C * MN_W];
    mn_errands errands; /* done during the products */
} chunk;

MN_INLINE float *mn_chunk_in(chunk *x, float *next, int64_t K, int64_t V) {
    int64_t Kp = mn_padded(K), Vp = mn_padded(V);
    float **of_pairs[] = {&x->reads, &x->dreads, &x->writes, &x->dwrites, &x->later, &x->columns};
    for (int i = 0; i < 6; i++, next += 2 * C * Kp) *of_pairs[i] = next;
    float **of_values[] = {&x->out, &x->in, &x->back};
    for (int i = 0; i < 3; i++, next += 2 * C * Vp) *of_values[i] = next;
    x->E = next, next += C * Kp;
    x->over_E = next, next += C * Kp;
    float **rows[] = {&x->head, &x->tail, &x->whole, &x->inner};
    for (int i = 0; i < 4; i++, next += Kp) *rows[i] = next;
    return next;
}

/* Decays from the middle, and reads and writes of tokens; false if these would leave the range of numbers. */
MN_INLINE int centre(chunk *x, const block *b, int64_t Kp, const int rule) {
    vi fine = ~(vi){0};
    for (int64_t c = 0; c < Kp; c += MN_W) {
        vf E = vf_set(1), over = E, before[C];
        for (int i = MIDDLE; i >= 0; i--) {
            vf d = vf_exp(vf_load(b->log.at + i * b->log.step + c));
            fine &= d <= vf_set(1);
            before[i] = over; /* 1 / E_i */
            over *= d;
        }
        vf_store(x->head + c, over);
        for (int i = MIDDLE + 1; i < C; i++) {
            vf d = vf_exp(vf_load(b->log.at + i * b->log.step + c));
            fine &= d <= vf_set(1);
            before[i] = E *= d; /* E_i */
        }
        vf_store(x->tail + c, E);
        vf_store(x->whole + c, E * over);
        fine &= (over >= vf_set(MN_FAINT)) & (E >= vf_set(MN_FAINT));
        vf last = 1 / over;
        for (int i = 0; i < C; i++) {
            int64_t at = i * Kp + c;
            vf inverse = 1 / before[i], e = i > MIDDLE ? before[i] : inverse;
            vf one_over = i > MIDDLE ? inverse : before[i];
            vf k = vf_load(b->in.k + at);
            vf_store(x->E + at, e);
            vf_store(x->over_E + at, one_over);
            vf_store(x->reads + at, vf_load(b->in.q + at) * e);
            if (rule == MN_DPLR) {
                vf_store(x->reads + C * Kp + at, vf_load(b->in.a + at) * last);
                vf_store(x->writes + at, vf_load(b->in.b + at) * one_over);
                vf_store(x->writes + C * Kp + at, k * one_over);
                last = e;
            } else {
                vf_store(x->reads + C * Kp + at, k * e);
                vf_store(x->writes + at, k * one_over);
            }
        }
    }
    int all = 1;
    for (int i = 0; i < MN_W; i++) all &= fine[i] != 0;
    return all;
}

/* Gradients of the reads and writes of tokens, and of their decays. */
MN_INLINE void undo_decays(chunk *x, block *b, int64_t Kp, const int rule) {
    const float *dq = x->dreads, *da = dq + C * Kp, *dw = x->dwrites, *late = x->later;
    for (int64_t c = 0; c < Kp; c += MN_W) {
        vf before = vf_load(x->inner + c) * vf_load(x->whole + c), after = {0}, next = {0};
        vf last = 1 / vf_load(x->head + c);
        for (int i = 0; i < C; i++) {
            int64_t at = i * Kp + c, second = at + C * Kp;
            vf E = vf_load(x->E + at), over_E = vf_load(x->over_E + at);
            vf q = vf_load(b->in.q + at), k = vf_load(b->in.k + at);
            vf of_q = vf_load(dq + at) * E, risen = of_q * q;
            vf_store(b->dd + at, before);
            if (rule == MN_DPLR) {
                vf w = vf_load(b->in.b + at), of_a = vf_load(da + at) * last;
                vf of_b = vf_load(dw + at) * over_E, of_k = vf_load(dw + second) * over_E;
                vf late_b = vf_load(late + at) * over_E, late_k = vf_load(late + second) * over_E;
                vf_store(x->dreads + C * Kp + at, of_a * vf_load(b->in.a + at)); /* of the decays before */
                vf_store(b->to_a.at + i * b->to_a.step + c, of_a);
                before += late_b * w + late_k * k;
                risen -= of_b * w + of_k * k;
                vf_store(b->to_b.at + i * b->to_b.step + c, of_b + late_b + q * x->along[i]);
                vf_store(b->to_k.at + i * b->to_k.step + c, of_k + late_k + q * x->along[C + i]);
                of_q += w * x->along[i] + k * x->along[C + i];
                last = E;
            } else {
                vf of_a = vf_load(da + at) * E, of_k = vf_load(dw + at) * over_E, late_k = vf_load(late + at) * over_E;
                before += late_k * k;
                risen += (of_a - of_k) * k;
                vf_store(b->to_k.at + i * b->to_k.step + c, of_a + of_k + late_k + q * x->along[i]);
                of_q += k * x->along[i];
            }
            vf_store(b->to_q.at + i * b->to_q.step + c, of_q);
            vf_store(x->dreads + at, risen);
        }
        for (int i = C - 1; i >= 0; i--) {
            int64_t at = i * Kp + c;
            after += vf_load(dq + at);
            vf_store(b->to_d.at + i * b->to_d.step + c, vf_load(b->dd + at) + (after + next));
            if (rule == MN_DPLR) next += vf_load(da + at);
        }
    }
}

#endif
