/* The products of a chunk of KDA or DPLR: see `channel_chunk.h` for what they mean. For `*.kernel.c` only. */
#ifndef MN_CHANNEL_PRODUCTS_H
#define MN_CHANNEL_PRODUCTS_H

#include "common/products.h"
#include "common/transpose.h"
#include "rules/channel_chunk.h"

/* Of a matrix [2C, n] what lies at or below the diagonal; in the lower half, below it. */
static const float ONES_BEFORE[2 * C] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
MN_INLINE void lower(float *M, const int n, const int diagonal) {
    for (int i = 0; i < 2 * C; i++)
        for (int j = 0; j < n; j += MN_W) {
            vf ones = vf_load(ONES_BEFORE + C - (i % C + (i < C && diagonal)) + j % C);
            vf_store(M + i * n + j, vf_select(ones > vf_set(0), vf_load(M + i * n + j), (vf){0}));
        }
}

/* y over du, from the last token to the first, and beta's gradients. du lies where y will be, [C, Vp]. */
MN_INLINE void solve(chunk *x, block *b, float *y, const float *N, int64_t Vp, const int n, const int rule) {
    enum { ROWS = MN_W == 16 ? 16 : 8 };
    for (int i = 0; i < C; i++) vf_store(x->parts + i * MN_W, (vf){0});
    for (int64_t j = 0; j < Vp; j += MN_W)
        for (int first = C - ROWS; first >= 0; first -= ROWS) {
            vf du[ROWS];
            MN_UNROLL
            for (int i = 0; i < ROWS; i++) du[i] = vf_load(y + (first + i) * Vp + j);
            for (int l = first + ROWS; l < C; l++) {
                vf later = vf_load(y + l * Vp + j);
                MN_UNROLL
                for (int i = 0; i < ROWS; i++) du[i] += later * N[l * n + first + i];
            }
            MN_UNROLL
            for (int i = ROWS - 1; i >= 0; i--) {
                int t = first + i;
                vf solution = du[i];
                if (rule != MN_DPLR) {
                    vf dv = solution * b->in.beta[t];
                    vf error = vf_load(b->error.at + t * b->error.step + j);
                    vf_store(x->parts + t * MN_W, vf_load(x->parts + t * MN_W) + solution * error);
                    vf_store(b->to_v.at + t * b->to_v.step + j, dv);
                    solution = -dv;
                }
                vf_store(y + t * Vp + j, solution);
                MN_UNROLL
                for (int l = 0; l < i; l++) du[l] += solution * N[t * n + first + l];
            }
        }
    for (int i = 0; rule != MN_DPLR && i < C; i += MN_W)
        vf_store(b->dbeta + i, mn_sums(x->parts + i * MN_W, MN_W));
}

/* A product over many terms, with some errands now and then, and sums of sums as in `mn_product_block`. */
MN_INLINE void multiply_asking(chunk *x, vf *sum, const float *a, int64_t row, int64_t term, const float *b,
                               int64_t step, int64_t L, const int nv) {
    for (int64_t l = 0; l < L; l += MN_ASKED) {
        vf part[MN_SUMS];
        mn_ask(&x->errands);
        mn_clear(part, nv);
        mn_multiply(part, a + l * term, row, term, b + l * step, step, mn_min(MN_ASKED, L - l), nv);
        MN_UNROLL
        for (int i = 0; i < MN_ROWS * nv; i++) sum[i] += part[i];
    }
}

/* du of all tokens (and dv) as columns. */
MN_INLINE void du_block(chunk *x, const float *D, const float *go, int64_t Kp, int64_t Vp, int64_t i, int64_t j,
                        const int n, const int nv) {
    vf sum[MN_SUMS];
    mn_clear(sum, nv);
    multiply_asking(x, sum, D + i * Kp, Kp, 1, x->columns + j, n, Kp, nv);
    mn_multiply(sum, go + i, 1, Vp, x->M + j, n, C, nv);
    mn_give(x->back + i * n + j, n, sum, nv);
}
/* What y adds to dv. */
MN_INLINE void dv_block(const chunk *x, block *b, const float *y, int64_t Vp, int64_t i, int64_t j, const int nv) {
    vf sum[MN_SUMS];
    mn_clear(sum, nv);
    mn_multiply(sum, x->M + C * 2 * C + C + i, 1, 2 * C, y + j, Vp, C, nv);
    mn_add(sum, b->dv + i * Vp + j, Vp, nv);
    mn_give(b->to_v.at + i * b->to_v.step + j, b->to_v.step, sum, nv);
}

/* dM, and its diagonals apart. */
MN_INLINE void products_of_values(chunk *x, int64_t Vp, const int n) {
    MN_EACH_BLOCK(2 * C, n, mn_product_block(x->dM + i * n + j, n, x->out + i, 1, 2 * C, x->in + j, n, Vp, nv))
    for (int t = 0; t < n; t++) x->along[t] = x->dM[t % C * n + t];
    lower(x->dM, n, 0);
}

/* Gradients of reads and writes, but for the diagonal's part. */
MN_INLINE void reads_block(chunk *x, const float *S, int64_t Kp, int64_t Vp, int64_t i, int64_t j, const int n,
                           const int nv) {
    vf sum[MN_SUMS];
    mn_clear(sum, nv);
    multiply_asking(x, sum, x->out + i, 1, 2 * C, S + j, Kp, Vp, nv);
    mn_scale(sum, x->head + j, nv);
    for (int64_t l = 0; l < n; l += C) /* nothing above the diagonal */
        mn_multiply(sum, x->dM + i * n + l, n, 1, x->writes + l * Kp + j, Kp, i % C + MN_ROWS, nv);
    mn_give(x->dreads + i * Kp + j, Kp, sum, nv);
}
MN_INLINE void writes_block(chunk *x, const float *D, int64_t Kp, int64_t Vp, int64_t i, int64_t j, const int n,
                            const int nv) {
    vf sum[MN_SUMS];
    mn_clear(sum, nv);
    multiply_asking(x, sum, x->in + i, 1, n, D + j, Kp, Vp, nv);
    mn_scale(sum, x->tail + j, nv);
    mn_give(x->later + i * Kp + j, Kp, sum, nv);
    mn_clear(sum, nv);
    for (int64_t l = i % C; l < 2 * C; l += C)
        mn_multiply(sum, x->dM + l * n + i, 1, n, x->reads + l * Kp + j, Kp, C - i % C, nv);
    mn_give(x->dwrites + i * Kp + j, Kp, sum, nv);
}

/* D, and the sums of S D of before. */
MN_INLINE void state_block(chunk *x, const float *S, float *D, const float *out, int64_t Kp, int64_t Vp, int64_t i,
                           int64_t j, const int nv) {
    vf sum[MN_SUMS], inner[MN_WIDE];
    mn_clear(sum, nv);
    multiply_asking(x, sum, out + i, 1, Vp, x->reads + j, Kp, 2 * C, nv);
    mn_scale(sum, x->head + j, nv);
    MN_UNROLL
    for (int p = 0; p < nv; p++) inner[p] = (vf){0};
    MN_UNROLL
    for (int s = 0; s < MN_ROWS * nv; s++) {
        int64_t at = (i + s / nv) * Kp + j + s % nv * MN_W;
        vf old = vf_load(D + at);
        inner[s % nv] += vf_load(S + at) * old;
        vf_store(D + at, sum[s] + old * vf_load(x->whole + j + s % nv * MN_W));
    }
    MN_UNROLL
    for (int p = 0; p < nv; p++) vf_store(x->inner + j + p * MN_W, vf_load(x->inner + j + p * MN_W) + inner[p]);
}

/* A chunk that `centre` has prepared: gradients in the block; D moves on. */
MN_INLINE void one_chunk(chunk *x, block *b, const float *S, float *D, int64_t Kp, int64_t Vp, const int rule) {
    const int n = rule == MN_DPLR ? 2 * C : C;
    float *y = b->go + C * Vp;
    mn_transpose(x->writes, Kp, C, Kp, x->columns, n);
    if (rule == MN_DPLR) mn_transpose(x->writes + C * Kp, Kp, C, Kp, x->columns + C, n);
    MN_EACH_BLOCK(2 * C, n, mn_product_block(x->M + i * n + j, n, x->reads + i * Kp, Kp, 1, x->columns + j, n, Kp, nv))
    lower(x->M, n, 1);
    for (int64_t c = 0; c < Kp; c++)
        for (int j = 0; j < n; j += MN_W)
            vf_store(x->columns + c * n + j, vf_load(x->columns + c * n + j) * x->tail[c]);
    MN_EACH_BLOCK(Vp, n, du_block(x, D, b->go, Kp, Vp, i, j, n, nv))
    mn_transpose(x->back, n, Vp, C, y, Vp);
    solve(x, b, y, x->M + C * n, Vp, n, rule);
    if (rule == MN_DPLR) {
        mn_transpose(x->back + C, n, Vp, C, b->dv, Vp);
        MN_EACH_BLOCK(C, Vp, dv_block(x, b, y, Vp, i, j, nv))
    }
    mn_transpose(b->go, Vp, C, Vp, x->out, 2 * C);
    mn_transpose(y, Vp, C, Vp, x->out + C, 2 * C);
    mn_transpose(b->u.at, b->u.step, C, Vp, x->in, n);
    if (rule == MN_DPLR) mn_transpose(b->in.v.at, b->in.v.step, C, Vp, x->in + C, n);
    products_of_values(x, Vp, n);
    MN_EACH_BLOCK(2 * C, Kp, reads_block(x, S, Kp, Vp, i, j, n, nv))
    MN_EACH_BLOCK(n, Kp, writes_block(x, D, Kp, Vp, i, j, n, nv))
    mn_zero(x->inner, Kp);
    MN_EACH_BLOCK(Vp, Kp, state_block(x, S, D, b->go, Kp, Vp, i, j, nv))
    undo_decays(x, b, Kp, rule);
}

#endif
