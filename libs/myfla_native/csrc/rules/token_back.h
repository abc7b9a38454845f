/* Backward of KDA and DPLR, token by token from the last to the first; exact for every decay of channels. For
 * `*.kernel.c` only.
 *
 * States are computed again from e or u, which the forward kept: that needs no sums. With D the gradient of S after a
 * token has been read, D <- D + q go^T, and S its state before:
 *
 *     KDA    de = beta (D^T k);   D <- D - k de^T                                       (now of d S)
 *     DPLR   du = D^T b,  dv = D^T k
 *     both   dd = rows of S * D;  D <- d D  (DPLR: + a du^T)
 *
 * One pass over a panel finishes a token and begins the one before it. */
#ifndef MN_TOKEN_BACK_H
#define MN_TOKEN_BACK_H

#include "rules/gradients.h"
#include "rules/rows.h"

/* The sums of a pass over value channels, one vector of partial sums for each key channel: */
enum {
    S_BACK = 0,
    /* S de, DPLR: S du */ S_OUT = 1,
    /* S go */ S_D = 2,
    /* S D */ D_WRITE = 3,
    /* D u */ D_VALUE = 4,
    /* D v */ SUMS = 5
};

/* A token's vectors over the panel. */
typedef struct {
    vf out[4], back[4], write[4], value[4];
} columns;

/* S <- d S + w u (+ k v). */
MN_INLINE void advance(float *to, const float *S, const float *d, const float *w, const float *k, const float *u,
                       const float *v, int64_t Kp, const int nv, const int rule) {
    for (int64_t i = 0; i < Kp; i++)
        for (int j = 0; j < nv; j++) {
            vf s = vf_load(S + (i * nv + j) * MN_W) * d[i] + vf_load(u + j * MN_W) * w[i];
            if (rule == MN_DPLR) s += vf_load(v + j * MN_W) * k[i];
            vf_store(to + (i * nv + j) * MN_W, s);
        }
}

/* Finish token t, whose vectors are `now`, and begin the one before it, `next`: D is its gradient after.
 * Sums of token t go to the block, so do those of `next`; sums over keys that `next` needs go to du, dvalue. */
MN_INLINE void walk(block *b, float *D, const float *S, int64_t t, const columns *now, const columns *next, vf *du,
                    vf *dvalue, int64_t Kp, const int nv, const int rule, const int finish, const int begin) {
    const float *decay = b->in.d + t * Kp, *k = b->in.k + t * Kp, *a = b->in.a + t * Kp;
    int64_t before = begin ? (t - 1) * Kp : 0;
    const float *q1 = b->in.q + before, *k1 = b->in.k + before, *w1 = rule == MN_DPLR ? b->in.b + before : k1;
    float d = 1;
    for (int64_t i0 = 0; i0 < Kp; i0 += MN_W) {
        float *part = b->parts;
        for (int64_t i = i0; i < i0 + MN_W; i++, part += SUMS * MN_W, D += nv * MN_W, S += nv * MN_W) {
            vf sum[SUMS] = {{0}};
            if (finish) d = decay[i];
            for (int j = 0; j < nv; j++) {
                vf x = vf_load(D + j * MN_W);
                if (finish) {
                    vf s = vf_load(S + j * MN_W);
                    sum[S_BACK] += s * now->back[j];
                    sum[S_OUT] += s * now->out[j];
                    if (rule != MN_DPLR) x -= now->back[j] * k[i];
                    sum[S_D] += s * x;
                    x *= d;
                    if (rule == MN_DPLR) x += now->back[j] * a[i];
                }
                if (begin) {
                    x += next->out[j] * q1[i];
                    du[j] += x * w1[i];
                    sum[D_WRITE] += x * next->write[j];
                    if (rule == MN_DPLR) {
                        dvalue[j] += x * k1[i];
                        sum[D_VALUE] += x * next->value[j];
                    }
                }
                vf_store(D + j * MN_W, x);
            }
            if (finish) {
                vf_store(part + S_BACK * MN_W, sum[S_BACK]);
                vf_store(part + S_OUT * MN_W, sum[S_OUT]);
                vf_store(part + S_D * MN_W, sum[S_D]);
            }
            if (begin) {
                vf_store(part + D_WRITE * MN_W, sum[D_WRITE]);
                if (rule == MN_DPLR) vf_store(part + D_VALUE * MN_W, sum[D_VALUE]);
            }
        }
        part = b->parts;
        if (finish) {
            int64_t at = t * Kp + i0;
            vf decays = vf_load(decay + i0);
            vf back = mn_sums(part + S_BACK * MN_W, SUMS * MN_W),
               out = mn_sums(part + S_OUT * MN_W, SUMS * MN_W) * decays;
            vf keys = vf_load(k + i0);
            if (rule == MN_DPLR) {
                vf_store(b->da + at, vf_load(b->da + at) + back);
                out += vf_load(b->in.b + at) * b->u_out[t] + keys * b->v_out[t];
            } else {
                vf_store(b->dk + at, vf_load(b->dk + at) - back * decays);
                out += keys * b->u_out[t];
            }
            vf_store(b->dq + at, vf_load(b->dq + at) + out);
            vf_store(b->dd + at, vf_load(b->dd + at) + mn_sums(part + S_D * MN_W, SUMS * MN_W) * decays);
        }
        if (begin) {
            int64_t at = before + i0;
            float *write = rule == MN_DPLR ? b->db : b->dk;
            vf_store(write + at, vf_load(write + at) + mn_sums(part + D_WRITE * MN_W, SUMS * MN_W));
            if (rule == MN_DPLR)
                vf_store(b->dk + at, vf_load(b->dk + at) + mn_sums(part + D_VALUE * MN_W, SUMS * MN_W));
        }
    }
}

/* The vectors of token t in the panel at column p. */
MN_INLINE void take(columns *to, block *b, int64_t t, int64_t p, int64_t Vp, const int nv, const int rule) {
    vf u_out = {0}, v_out = {0};
    for (int j = 0; j < nv; j++) {
        int64_t at = t * Vp + p + j * MN_W;
        to->out[j] = vf_load(b->go + at);
        to->write[j] = vf_load(b->u.at + t * b->u.step + p + j * MN_W);
        u_out += to->write[j] * to->out[j];
        if (rule == MN_DPLR) {
            to->value[j] = vf_load(b->in.v.at + t * b->in.v.step + p + j * MN_W);
            v_out += to->value[j] * to->out[j];
        }
    }
    b->u_out[t] = mn_sum(u_out);
    if (rule == MN_DPLR) b->v_out[t] = mn_sum(v_out);
}

/* A block of n tokens over the panel at column p: S its state before, D the gradient after, then the one before. */
MN_INLINE void panel(block *b, const float *S, float *D, int64_t n, int64_t p, int64_t Kp, int64_t Vp, const int nv,
                     const int rule) {
    int64_t size = Kp * nv * MN_W;
    columns now = {{{0}}, {{0}}, {{0}}, {{0}}}, next = now;
    const float *before = S;
    for (int64_t t = 0; t + 1 < n; t++) {
        const float *k = b->in.k + t * Kp, *w = rule == MN_DPLR ? b->in.b + t * Kp : k;
        float *to = b->states + (t + 1) * size;
        const float *u = b->u.at + t * b->u.step + p, *v = rule == MN_DPLR ? b->in.v.at + t * b->in.v.step + p : u;
        advance(to, before, b->in.d + t * Kp, w, k, u, v, Kp, nv, rule);
        before = to;
    }
    for (int64_t t = n; t >= 0; t--) {
        vf du[4] = {{0}}, dvalue[4] = {{0}};
        const float *state = t ? b->states + t * size : S;
        if (t) take(&next, b, t - 1, p, Vp, nv, rule);
        if (t == n) walk(b, D, state, t, &now, &next, du, dvalue, Kp, nv, rule, 0, 1);
        else if (t) walk(b, D, state, t, &now, &next, du, dvalue, Kp, nv, rule, 1, 1);
        else walk(b, D, state, t, &now, &next, du, dvalue, Kp, nv, rule, 1, 0);
        if (!t) break;
        vf strength = {0};
        for (int j = 0; j < nv; j++) {
            int64_t at = (t - 1) * Vp + p + j * MN_W;
            if (rule != MN_DPLR) {
                strength += du[j] * vf_load(b->error.at + (t - 1) * b->error.step + p + j * MN_W);
                du[j] *= b->in.beta[t - 1];
            }
            next.back[j] = du[j];
            vf_store(b->dv + at, rule == MN_DPLR ? dvalue[j] : du[j]);
        }
        if (rule != MN_DPLR) b->dbeta[t - 1] += mn_sum(strength);
        now = next;
    }
}

/* A block of n tokens: S its state before, D the gradient after, then the one before; both in panels. */
MN_INLINE void mn_tokens_back(block *b, const float *S, float *D, int64_t n, int64_t Kp, int64_t Vp, const int rule) {
    mn_zero(b->dq, n * Kp);
    mn_zero(b->dk, n * Kp);
    mn_zero(b->dd, n * Kp);
    if (rule == MN_DPLR) mn_zero(b->da, n * Kp), mn_zero(b->db, n * Kp);
    for (int64_t t = 0; t < n; t++) b->dbeta[t] = 0;
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < Kp; j += MN_W)
            vf_store(b->in.d + t * Kp + j, vf_exp(vf_load(b->log.at + t * b->log.step + j)));
    for (int64_t p = 0, nv; p < Vp; p += nv * MN_W) {
        nv = mn_panel(Vp - p);
        if (nv == 4) panel(b, S + p * Kp, D + p * Kp, n, p, Kp, Vp, 4, rule);
        else if (nv == 2) panel(b, S + p * Kp, D + p * Kp, n, p, Kp, Vp, 2, rule);
        else panel(b, S + p * Kp, D + p * Kp, n, p, Kp, Vp, 1, rule);
    }
}

#endif
