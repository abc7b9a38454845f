/* Backward of KDA and DPLR: a chunk of tokens in products of matrices, or token by token where decays are too strong
 * for that or tokens too few. Both meet in the states and their gradients, so each chunk has its own choice. */
#include "rules/channel_products.h"
#include "rules/token_back.h"
#include "rules/turned_states.h"
#include "rules/walk_back.h"

enum { FEW = C / 2 }; /* tokens that are quicker one by one */
enum { FEW_KEYS = 4 }; /* with so few key channels, gradients of decays need the accuracy of going one by one */

typedef struct {
    block tokens;
    chunk chunk;
    float *S, *D; /* in panels, for going token by token */
} work;

/* next = S decayed + writes of C tokens. */
MN_INLINE void next_block(const chunk *x, const block *b, const float *S, float *next, int64_t Kp, int64_t i, int64_t j,
                          const int nv, const int rule) {
    vf sum[MN_SUMS];
    mn_clear(sum, nv);
    mn_add(sum, S + i * Kp + j, Kp, nv);
    mn_scale(sum, x->whole + j, nv);
    mn_multiply(sum, b->error.at + i, 1, b->error.step, x->writes + j, Kp, C, nv);
    if (rule == MN_DPLR) mn_multiply(sum, b->in.v.at + i, 1, b->in.v.step, x->writes + C * Kp + j, Kp, C, nv);
    mn_give(next + i * Kp + j, Kp, sum, nv);
}

MN_INLINE void forth(void *work_, const mn_rule *c, mn_part at, const float *S, float *next, const int rule) {
    block *b = &((work *)work_)->tokens;
    chunk *x = &((work *)work_)->chunk;
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V);
    prefetch_writes(c, at.row, at.first + C, at.head, rule);
    mn_from k = fill_writes(b, c, at.row, at.first, C, at.head, rule), w = {NULL, 0};
    if (rule == MN_DPLR) w = mn_get_rows(&c->b, at.row, at.first, C, at.head, c->K, b->in.b);
    for (int t = 0; rule != MN_DPLR && t < C; t++) b->in.k_unit[t] *= b->in.beta[t];
    for (int64_t i = 0; i < Kp; i += MN_W) {
        vf fall = vf_set(1);
        for (int64_t t = C - 1; t >= 0; t--) {
            vf key = vf_load(k.at + t * k.step + i) * b->in.k_unit[t] * fall;
            if (rule == MN_DPLR) {
                vf_store(x->writes + t * Kp + i, vf_load(w.at + t * w.step + i) * fall);
                vf_store(x->writes + (C + t) * Kp + i, key);
            } else vf_store(x->writes + t * Kp + i, key);
            fall *= vf_exp(vf_load(b->log.at + t * b->log.step + i));
        }
        vf_store(x->whole + i, fall);
    }
    MN_EACH_BLOCK(Vp, Kp, next_block(x, b, S, next, Kp, i, j, nv, rule))
}

/* A turned state in panels, and back. */
static void as_panels(const float *S, float *panels, int64_t Kp, int64_t Vp, int back) {
    for (int64_t p = 0, width; p < Vp; p += width) {
        width = MN_W * mn_panel(Vp - p);
        if (back) mn_transpose(S + p * Kp, width, Kp, width, panels + p * Kp, Kp);
        else mn_transpose(S + p * Kp, Kp, width, Kp, panels + p * Kp, width);
    }
}

MN_INLINE void back(void *work_, const mn_rule *c, const mn_rule_grad *g, mn_part at, const float *S, float *D,
                    float *sums, double *gate, const int rule) {
    work *w = work_;
    block *b = &w->tokens;
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V);
    mn_expect_next(&w->chunk.errands, c, g, at.row, at.first, at.head, Kp * Vp / (3 * MN_W), rule);
    fill(b, c, g, at.row, at.first, at.count, at.head, rule);
    if (at.count > FEW && c->K > FEW_KEYS && centre(&w->chunk, b, Kp, rule)) {
        aim(b, c, g, at.row, at.first, at.count, at.head, 1, rule);
        one_chunk(&w->chunk, b, S, D, Kp, Vp, rule);
    } else {
        aim(b, c, g, at.row, at.first, at.count, at.head, 0, rule);
        as_panels(S, w->S, Kp, Vp, 0);
        as_panels(D, w->D, Kp, Vp, 0);
        mn_tokens_back(b, w->S, w->D, at.count, Kp, Vp, rule);
        as_panels(w->D, D, Kp, Vp, 1);
    }
    hand_back(b, c, g, at.row, at.first, at.count, at.head, sums, gate, rule);
}

#define ONE_RULE(name, rule)                                                                                           \
    static void forth_##name(void *w, const mn_rule *c, mn_part at, const float *S, float *next) {                     \
        forth(w, c, at, S, next, rule);                                                                                \
    }                                                                                                                  \
    static void back_##name(void *w, const mn_rule *c, const mn_rule_grad *g, mn_part at, const float *S, float *D,    \
                            float *sums, double *gate) {                                                               \
        back(w, c, g, at, S, D, sums, gate, rule);                                                                     \
    }
ONE_RULE(kda, MN_KDA)
ONE_RULE(dplr, MN_DPLR)

void MN_VARIANT(mn_channel_backward)(const void *args, int64_t begin, int64_t end, int slot) {
    const mn_token_job *job = args;
    const mn_rule *c = job->call;
    int64_t K = mn_padded(c->K), V = mn_padded(c->V), H = c->H;
    int kda = c->rule == MN_KDA;
    work w;
    float *next = mn_block_in(&w.tokens, job->scratch + slot * job->floats, c->K, c->V, (int)c->rule);
    next = mn_chunk_in(&w.chunk, next, c->K, c->V);
    w.S = next, next += K * V;
    w.D = next, next += K * V;
    for (int64_t i = begin; i < end; i++)
        mn_walk_back(&w, job, i / H, i % H, next, kda ? forth_kda : forth_dplr, kda ? back_kda : back_dplr,
                     mn_get_turned, mn_put_turned);
}
