/* Backward of the gated delta rule, C tokens at a time, in products of matrices.
 *
 * Within a chunk, with D_ij = d_{j+1} ... d_i for j <= i, rise_i = d_1 ... d_i, fall_j = D_Cj, the states S before and
 * the gradient G of the state after it, q with its scale:
 *
 *     P = D (q k^T),  N = D (k k^T) below the diagonal                                 C x C
 *     du = P^T go + fall k G;   x = beta lambda,  lambda_i = du_i - sum_{j>i} N_ji x_j;   dv = x, dbeta = lambda e
 *     dP = D (go u^T),  dN = -D (x u^T);   dq = rise S go + dP k
 *     dk = -rise S x + fall G u + dP^T q + (dN + dN^T) k;   G <- d_1 ... d_C G + (rise q)^T go - (rise k)^T x
 *
 * Gradients of channels are computed transposed, so that the states are read as they lie. Every term of a log decay's
 * gradient has that decay as a factor: none of them cancel, however strong the decay. */
#include "rules/chunk_products.h"
#include "rules/walk_back.h"

/* P and N from the products of rows. */
MN_INLINE void decay_scores(chunk *x, float scale) {
    for (int i = 0; i < C * C; i += MN_W) {
        vf D = vf_load(x->D + i);
        vf_store(x->PN + i, vf_load(x->PN + i) * D * scale);
        vf_store(x->PN + C * C + i, vf_load(x->PN + C * C + i) * D);
    }
    for (int i = 0; i < C; i++) x->PN[C * C + i * C + i] = 0;
}

/* What gradients of P and N add to those of the log decays: a term of row i and column j to those from j + 1 to i. And
 * the gradients themselves, as products take them. */
MN_INLINE void undecay_scores(chunk *x, float scale) {
    vf below[C / MN_W] = {{0}};
    float dP[C * C], dN[C * C], turned[C * C];
    for (int t = C - 1; t >= 0; t--) {
        vf sum = {0};
        for (int j = 0; j < C / MN_W; j++) {
            int at = t * C + j * MN_W;
            vf D = vf_load(x->D + at), of_P = vf_load(x->dPN + at), of_N = -vf_load(x->dPN + C * C + at);
            below[j] += of_P * vf_load(x->PN + at) + of_N * vf_load(x->PN + C * C + at);
            sum += below[j] * vf_load(ONES_BEFORE + C - t + j * MN_W);
            vf_store(dP + at, of_P * D * scale);
            vf_store(dN + at, of_N * D);
        }
        vf_store(x->parts + t * MN_W, sum);
        dN[t * C + t] = 0;
    }
    for (int i = 0; i < C; i += MN_W) vf_store(x->ddecay + i, mn_sums(x->parts + i * MN_W, MN_W));
    mn_transpose(dP, C, C, C, x->mix, 3 * C);
    mn_transpose(dN, C, C, C, turned, C);
    for (int i = 0; i < C; i++)
        for (int j = 0; j < C; j += MN_W) {
            vf_store(x->mix + i * 3 * C + C + j, vf_load(dP + i * C + j));
            vf_store(x->mix + i * 3 * C + 2 * C + j, vf_load(dN + i * C + j) + vf_load(turned + i * C + j));
        }
}

/* Everything of a chunk whose rows and gates are there: x, dqk, dbeta, ddecay; G moves on. */
static void one_chunk(chunk *x, const float *S, float *G, int64_t Kp, int64_t Vp, float scale) {
    scores(x->qk, 2 * C, C, Kp, x->PN);
    decay_scores(x, scale);
    solve(x, G, Kp, Vp);
    mn_from solved = {x->x.at, x->x.step};
    mn_transpose(x->go.at, x->go.step, C, Vp, x->out, 3 * C);
    mn_transpose(solved.at, solved.step, C, Vp, x->out + C, 3 * C);
    mn_transpose(x->error.at, x->error.step, C, Vp, x->out + 2 * C, 3 * C);
    times_columns(x->out + 2 * C, Vp, 3 * C, x->beta);
    scores(x->out, 3 * C, 2 * C, Vp, x->dPN);
    undecay_scores(x, scale);

    float rises[2 * C], rising[CHANNELS * 2 * C], last = x->rise[C - 1], risen[C], fallen[C];
    vf rise[C / MN_W] = {{0}}, fall[C / MN_W] = {{0}};
    double inner = 0; /* of terms as many as the state has numbers, of both signs */
    for (int i = 0; i < C; i++) rises[i] = x->rise[i] * scale, rises[C + i] = -x->rise[i];
    for (int64_t i = 0; i < Kp; i += CHANNELS, S += CHANNELS * Vp, G += CHANNELS * Vp) {
        const float *qk = x->qk + i * 2 * C;
        for (int j = 0; j < C / MN_W; j++)
            gradients_of_channels(x, S, G, Vp, qk, x->dqk + i * 2 * C, rises, j * MN_W, &rise[j], &fall[j]);
        for (int r = 0; r < CHANNELS * 2 * C; r += MN_W)
            vf_store(rising + r, vf_load(qk + r) * vf_load(rises + r % (2 * C)));
        vf part = {0};
        update(G, G, last, rising, x->go, solved, Vp, S, &part, &x->errands, 1);
        inner += (double)mn_sum(part);
    }
    for (int j = 0; j < C / MN_W; j++) vf_store(risen + j * MN_W, rise[j]), vf_store(fallen + j * MN_W, fall[j]);
    double before = inner * last, after = 0, total[C]; /* large terms of both signs */
    for (int t = 0; t < C; t++) total[t] = before + (double)x->ddecay[t], before += (double)fallen[t];
    for (int t = C - 1; t >= 0; t--) after += (double)risen[t], x->ddecay[t] = (float)(total[t] + after);
}

/* Gradients of rows as they came, from those of rows of length one, T and dT [Kp, 2C]. */
MN_INLINE void put_columns(chunk *x, const mn_tensor *to, mn_part at, int64_t head, const mn_rule *c, const float *dT,
                           const float *T, const float *unit) {
    int64_t Kp = mn_whole(c->K);
    mn_into out = mn_rows_in(to, at.row, at.first, at.count, head, c->K, x->row);
    float raw[MN_W * MN_W];
    for (int j = 0; j < C; j += MN_W) {
        vf sum[4] = {{0}}, factor = vf_load(unit + j);
        for (int64_t i = 0; c->l2norm && i < Kp; i += 4)
            for (int m = 0; m < 4; m++) sum[m] += vf_load(dT + (i + m) * 2 * C + j) * vf_load(T + (i + m) * 2 * C + j);
        vf along = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        for (int64_t i = 0; i < Kp; i += MN_W) {
            for (int m = 0; m < MN_W; m++) {
                int64_t from = (i + m) * 2 * C + j;
                vf_store(raw + m * MN_W, (vf_load(dT + from) - vf_load(T + from) * along) * factor);
            }
            mn_transpose(raw, MN_W, MN_W, MN_W, out.at + j * out.step + i, out.step);
        }
    }
    if (out.at == x->row) mn_put_rows(to, at.row, at.first, at.count, head, x->row, c->K);
}

static void back(void *block, const mn_rule *c, const mn_rule_grad *g, mn_part at, const float *S, float *G,
                 float *sums, double *gate) {
    chunk *x = block;
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V), group = c->HV / c->H, query = at.head / group;
    int64_t row = at.row, first = at.first, n = at.count, part = at.head % group;
    mn_expect_next(&x->errands, c, g, row, first, at.head, Kp * Vp / (6 * MN_W), MN_GATED);
    decays(x, c, row, first, n, at.head);
    x->go = (mn_from){x->own_go, Vp};
    if (g->go.at) x->go = mn_get_block(&g->go, row, first, n, at.head, c->V, x->own_go);
    else mn_zero(x->own_go, C * Vp);
    x->error = mn_get_block(&c->error, row, first, n, at.head, c->V, x->own_error);
    x->x = mn_rows_in(&g->dv, row, first, n, at.head, c->V, x->own_x);
    take_columns(x, x->qk, x->q_unit, &c->q, at, query, c);
    take_columns(x, x->qk + C, x->k_unit, &c->k, at, query, c);
    if (c->l2norm) times_columns(x->qk, Kp, 2 * C, x->q_unit), times_columns(x->qk + C, Kp, 2 * C, x->k_unit);
    one_chunk(x, S, G, Kp, Vp, (float)c->scale);
    for (int64_t i = 0; part && i < Kp * 2 * C; i += MN_W)
        vf_store(x->dqk + i, vf_load(x->dqk + i) + vf_load(sums + i));
    if (part + 1 < group) memcpy(sums, x->dqk, (size_t)(Kp * 2 * C) * sizeof *sums);
    else {
        put_columns(x, &g->dq, at, query, c, x->dqk, x->qk, x->q_unit);
        put_columns(x, &g->dk, at, query, c, x->dqk + C, x->qk + C, x->k_unit);
    }
    if (x->x.at == x->own_x) mn_put_rows(&g->dv, row, first, n, at.head, x->own_x, c->V);
    mn_put_decays(c, g, row, first, n, at.head, x->ddecay, gate);
    mn_put_strengths(c, g, row, first, n, at.head, x->dbeta);
}

static void forth(void *block, const mn_rule *c, mn_part at, const float *S, float *next) {
    chunk *x = block;
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V), query = at.head / (c->HV / c->H);
    at.count = C;
    mn_prefetch_rows(&c->k, at.row, at.first + C, query, c->K);
    mn_prefetch_rows(&c->error, at.row, at.first + C, at.head, c->V);
    decays(x, c, at.row, at.first, C, at.head);
    x->error = mn_get_block(&c->error, at.row, at.first, C, at.head, c->V, x->own_error);
    take_columns(x, x->qk, x->k_unit, &c->k, at, query, c);
    for (int t = 0; t < C; t++) x->fall[t] *= x->k_unit[t] * x->beta[t];
    times_columns(x->qk, Kp, 2 * C, x->fall);
    for (int64_t i = 0; i < Kp; i += CHANNELS)
        update(next + i * Vp, S + i * Vp, x->rise[C - 1], x->qk + i * 2 * C, x->error, x->error, Vp, S, NULL, NULL, 0);
}

/* States in rows [Kp, Vp], the rest zero. */
static void get_rows(float *S, const mn_tensor *x, int64_t n, int64_t head, int64_t K, int64_t V) {
    int64_t Vp = mn_whole(V), place = mn_place(x, n, 0, head);
    if (!x->at || K < mn_whole(K)) mn_zero(S, mn_whole(K) * Vp);
    for (int64_t i = 0; x->at && i < K; i++) mn_gather(S + i * Vp, x, place + i * x->token, V, x->channel);
}
static void put_rows(const mn_tensor *x, int64_t n, int64_t head, const float *S, int64_t K, int64_t V) {
    int64_t Vp = mn_whole(V), place = mn_place(x, n, 0, head);
    for (int64_t i = 0; x->at && i < K; i++) mn_scatter(x, place + i * x->token, S + i * Vp, V, x->channel);
}

void MN_VARIANT(mn_chunk_backward)(const void *args, int64_t begin, int64_t end, int slot) {
    const mn_token_job *job = args;
    chunk x;
    float *rest = mn_chunk_in(&x, job->scratch + slot * job->floats, job->call->K, job->call->V);
    for (int64_t i = begin; i < end; i++)
        mn_walk_back(&x, job, i / job->call->H, i % job->call->H, rest, forth, back, get_rows, put_rows);
}
