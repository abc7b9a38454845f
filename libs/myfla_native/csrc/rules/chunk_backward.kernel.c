/* Backward of the gated delta rule, C = MN_TOKENS tokens at a time, in products of matrices.
 *
 * Within a chunk, with D_ij = d_{j+1} ... d_i for j <= i, rise_i = d_1 ... d_i, fall_j = D_Cj, the states S before and
 * the gradient G_S of the state after it:
 *
 *     P = D (q k^T),  N = D (k k^T) below the diagonal                                 C x C
 *     du = P^T go + fall k G_S;   x = beta lambda,  lambda_i = du_i - sum_{j>i} N_ji x_j;   dv = x, dbeta = lambda e
 *     dP = D (go u^T),  dN = -D (x u^T);   dq = rise S go + dP k
 *     dk = -rise S x + dN k + fall G_S u + dP^T q + dN^T k;   G_S <- d_1 ... d_C G_S + (rise q)^T go - (rise k)^T x
 *
 * Gradients of channels are computed transposed, so that the states are read as they lie. Every term of a log decay's
 * gradient has that decay as a factor: none of them cancel, however strong the decay. */
#include "rules/gradients.h"
#include "rules/products.h"
#include "rules/token_job.h"

enum { C = MN_TOKENS };

typedef struct {
    block of;              /* of.go [2C, Vp]: go over -x */
    float *qk;             /* [Kp, 2C] */
    float *rising, *fallk; /* [2C, Kp] rise q over rise k; [C, Kp] */
    float *out, *u;        /* [Vp, 2C] go, -x; [Vp, C] */
    float *reads, *writes; /* [Kp, 2C] gradients by what reads the state; [Kp, C] by what writes it */
    float *du;             /* [C, Vp] */
    float D[C * C], P[C * C], N[C * C], dP[C * C], dN[C * C], pairs[2 * C * C];
    float rise[C], fall[C];
} chunk;

/* Products of decays, and the keys as they reach the chunk's end. */
MN_INLINE void decays(chunk *x, int64_t Kp) {
    const float *d = x->of.in.decay;
    for (int i = 0; i < C; i++) {
        x->rise[i] = i ? x->rise[i - 1] * d[i] : d[0];
        for (int j = 0; j < C; j++) x->D[i * C + j] = j < i ? x->D[(i - 1) * C + j] * d[i] : j == i;
    }
    memcpy(x->fall, x->D + (C - 1) * C, sizeof x->fall);
    for (int i = 0; i < C; i++)
        for (int64_t j = i * Kp; j < (i + 1) * Kp; j += MN_W)
            vf_store(x->fallk + j, vf_load(x->of.in.k + j) * x->fall[i]);
}

/* x and what becomes of it. */
MN_INLINE void solve(chunk *x, int64_t Vp) {
    block *b = &x->of;
    for (int i = C - 1; i >= 0; i--) {
        vf strength = {0};
        for (int64_t j = 0; j < Vp; j += MN_W) {
            vf lambda = vf_load(x->du + i * Vp + j);
            for (int l = i + 1; l < C; l++) lambda -= vf_load(b->dv + l * Vp + j) * x->N[l * C + i];
            strength += lambda * vf_load(b->error + i * Vp + j);
            vf solution = lambda * b->in.beta[i];
            vf_store(b->dv + i * Vp + j, solution);
            vf_store(b->go + (C + i) * Vp + j, -solution);
        }
        b->dbeta[i] = mn_sum(strength);
    }
}

/* Gradients of the log decays: each of all the terms that its decay is a factor of. */
MN_INLINE void log_decays(chunk *x, const float *of_rise, const float *of_fall, float of_last) {
    float column[C] = {0}, fallen[C] = {0}, risen = 0;
    for (int t = 1; t < C; t++) fallen[t] = fallen[t - 1] + of_fall[t - 1];
    for (int t = C - 1; t >= 0; t--) {
        float sum = 0;
        risen += of_rise[t];
        for (int j = 0; j < C; j++) {
            column[j] += x->dP[t * C + j] * x->P[t * C + j] + x->dN[t * C + j] * x->N[t * C + j];
            if (j < t) sum += column[j];
        }
        x->of.ddecay[t] = sum + risen + fallen[t] + of_last;
    }
}

static void one_chunk(chunk *x, const float *S, float *G, int64_t Kp, int64_t Vp) {
    block *b = &x->of;
    const float *q = b->in.q, *k = b->in.k;
    decays(x, Kp);
    float last = x->rise[C - 1];
    mn_transpose(q, Kp, C, Kp, x->qk, 2 * C);
    mn_transpose(k, Kp, C, Kp, x->qk + C, 2 * C);
    mn_product(C, C, Kp, q, Kp, 1, x->qk + C, 2 * C, x->P, C, 0);
    mn_product(C, C, Kp, k, Kp, 1, x->qk + C, 2 * C, x->N, C, 0);
    for (int i = 0; i < C; i++) {
        for (int j = 0; j < C; j++) x->P[i * C + j] *= x->D[i * C + j];
        for (int j = 0; j < C; j++) x->N[i * C + j] *= j < i ? x->D[i * C + j] : 0;
        for (int64_t j = i * Kp; j < (i + 1) * Kp; j += MN_W) {
            vf_store(x->rising + j, vf_load(q + j) * x->rise[i]);
            vf_store(x->rising + C * Kp + j, vf_load(k + j) * x->rise[i]);
        }
    }
    mn_product(C, Vp, Kp, x->fallk, Kp, 1, G, Vp, x->du, Vp, 0);
    mn_product(C, Vp, C, x->P, 1, C, b->go, Vp, x->du, Vp, 1);
    solve(x, Vp);

    mn_transpose(b->go, Vp, 2 * C, Vp, x->out, 2 * C);
    mn_transpose(b->u, Vp, C, Vp, x->u, C);
    mn_product(C, 2 * C, Vp, b->u, Vp, 1, x->out, 2 * C, x->pairs, 2 * C, 0);
    mn_transpose(x->pairs, 2 * C, C, C, x->dP, C);
    mn_transpose(x->pairs + C, 2 * C, C, C, x->dN, C);

    float of_rise[2 * C] = {0}, of_fall[C] = {0}, of_last = 0;
    mn_product(Kp, 2 * C, Vp, S, Vp, 1, x->out, 2 * C, x->reads, 2 * C, 0);
    mn_product(Kp, C, Vp, G, Vp, 1, x->u, C, x->writes, C, 0);
    for (int64_t i = 0; i < Kp; i++) {
        float *reads = x->reads + i * 2 * C, *writes = x->writes + i * C, *qk = x->qk + i * 2 * C;
        for (int j = 0; j < 2 * C; j++) {
            reads[j] *= x->rise[j % C];
            of_rise[j] += reads[j] * qk[j];
        }
        for (int j = 0; j < C; j++) {
            writes[j] *= x->fall[j];
            of_fall[j] += writes[j] * qk[C + j];
        }
    }
    vf inner = {0};
    for (int64_t i = 0; i < Kp * Vp; i += MN_W) inner += vf_load(S + i) * vf_load(G + i);
    of_last = mn_sum(inner) * last;
    for (int j = 0; j < C; j++) of_rise[j] += of_rise[C + j];
    log_decays(x, of_rise, of_fall, of_last);

    for (int i = 0; i < C; i++)
        for (int j = 0; j < C; j++) {
            x->dP[i * C + j] *= x->D[i * C + j];
            x->dN[i * C + j] *= j < i ? x->D[i * C + j] : 0;
        }
    mn_transpose(x->dP, C, C, C, x->pairs, 2 * C);
    mn_transpose(x->dN, C, C, C, x->pairs + C, 2 * C);
    mn_product(Kp, 2 * C, C, k, 1, Kp, x->pairs, 2 * C, x->reads, 2 * C, 1);
    mn_product(Kp, C, C, q, 1, Kp, x->dP, C, x->writes, C, 1);
    mn_product(Kp, C, C, k, 1, Kp, x->dN, C, x->writes, C, 1);
    for (int64_t i = 0; i < Kp; i++)
        for (int j = 0; j < C; j++) x->writes[i * C + j] += x->reads[i * 2 * C + C + j];
    mn_transpose(x->reads, 2 * C, Kp, C, b->dq, Kp);
    mn_transpose(x->writes, C, Kp, C, b->dk, Kp);
    mn_product(Kp, Vp, 2 * C, x->rising, 1, Kp, b->go, Vp, G, Vp, last);
}

/* The rest of a chunk whose sequence ends in it: tokens that change nothing. */
MN_INLINE void complete(chunk *x, int64_t n, int64_t Kp, int64_t Vp) {
    block *b = &x->of;
    mn_zero(b->in.q + n * Kp, (C - n) * Kp);
    mn_zero(b->in.k + n * Kp, (C - n) * Kp);
    mn_zero(b->go + n * Vp, (C - n) * Vp);
    mn_zero(b->error + n * Vp, (C - n) * Vp);
    mn_zero(b->u + n * Vp, (C - n) * Vp);
    for (int64_t t = n; t < C; t++) b->in.decay[t] = 1, b->in.beta[t] = 0;
}

static void rows_of_state(float *S, const mn_tensor *x, int64_t n, int64_t head, int64_t K, int64_t V, int put) {
    int64_t Kp = mn_whole(K), Vp = mn_whole(V), place = mn_place(x, n, 0, head);
    if (!put && (!x->at || K < Kp)) mn_zero(S, Kp * Vp);
    for (int64_t i = 0; x->at && i < K; i++) {
        if (put) mn_scatter(x, place + i * x->token, S + i * Vp, V, x->channel);
        else mn_gather(S + i * Vp, x, place + i * x->token, V, x->channel);
    }
}

static void value_head(chunk *x, const mn_rule *c, const mn_rule_grad *g, int64_t n, int64_t head, float *sums,
                       float *states) {
    block *b = &x->of;
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V), size = Kp * Vp, row, first, tokens;
    mn_span(c, n, &row, &first, &tokens);
    int64_t chunks = mn_blocks(tokens, C);
    float *G = states + mn_max(chunks, 1) * size;
    double gate[2] = {0, 0};
    rows_of_state(states, &c->initial, n, head, c->K, c->V, 0);
    for (int64_t i = 0; i + 1 < chunks; i++) { /* the states before the chunks */
        float *next = states + (i + 1) * size;
        fill(b, c, NULL, row, first + i * C, C, head, MN_GATED);
        decays(x, Kp);
        mn_product_from(Kp, Vp, C, x->fallk, 1, Kp, b->u, Vp, next, Vp, next - size, x->rise[C - 1]);
    }
    rows_of_state(G, &g->gfinal, n, head, c->K, c->V, 0);
    for (int64_t i = chunks - 1; i >= 0; i--) {
        int64_t begin = first + i * C, count = mn_min(C, tokens - i * C);
        fill(b, c, g, row, begin, count, head, MN_GATED);
        if (count < C) complete(x, count, Kp, Vp);
        one_chunk(x, states + i * size, G, Kp, Vp);
        hand_back(b, c, g, row, begin, count, head, sums + i * C * 2 * Kp, gate, MN_GATED);
    }
    rows_of_state(G, &g->dinitial, n, head, c->K, c->V, 1);
    if (c->gate) mn_put_gate(c, g, n, head, gate);
}

void MN_VARIANT(mn_chunk_backward)(const void *args, int64_t begin, int64_t end, int slot) {
    const mn_token_job *job = args;
    const mn_rule *c = job->call;
    int64_t K = mn_padded(c->K), V = mn_padded(c->V), group = c->HV / c->H;
    chunk x;
    block *b = &x.of;
    float *next = mn_tokens_in(&b->in, job->scratch + slot * job->floats, c->K, c->V, MN_GATED);
    float **of_values[] = {&b->go, &x.out, &b->error, &b->dv, &b->u, &x.du, &x.u};
    float **of_keys[] = {&x.qk, &x.rising, &x.reads, &x.fallk, &x.writes, &b->dq, &b->dk};
    for (int i = 0; i < 7; i++, next += (i < 3 ? 2 : 1) * C * V) *of_values[i] = next;
    for (int i = 0; i < 7; i++, next += (i < 4 ? 2 : 1) * C * K) *of_keys[i] = next;
    float *sums = next;
    if (group > 1) next += mn_blocks(job->tokens, C) * C * 2 * K;
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < group; j++) value_head(&x, c, job->grad, i / c->H, i % c->H * group + j, sums, next);
}
