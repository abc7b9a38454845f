/* Queries, keys and values of Comba and of Gated DeltaNet 2 for the DPLR rule, for one token; see `steps.h`. */
#include "layers/steps.h"
#include "rules/gates.h"

MN_INLINE void unit(float *x, int64_t Kp) { mn_times(x, 1 / sqrtf(mn_dot(x, x, Kp) + 1e-6f), Kp); }

static void comba(const mn_mix *m, int64_t n, int64_t query) {
    const mn_rule *c = m->rule;
    const mn_tensor *inner = &m->layer->inner, *output = &m->layer->output;
    int64_t Kp = mn_whole(c->K), group = c->HV / c->H, first = (n * c->HV + query * group) * m->keys;
    float *q = m->q + first, *k = m->k + first, *p = m->a + first, *g = m->g + first;
    float share = inner->at ? 1 / (1 + expf(-mn_one(inner, 0, 0, query))) : 1;
    float less = output->at ? mn_one(output, 0, 0, query) : 0;
    mn_get(q, &c->q, n, 0, query, c->K);
    mn_get(k, &c->k, n, 0, query, c->K);
    for (int64_t j = 0; j < Kp; j += MN_W) {
        vf read = vf_load(k + j) * share;
        vf_store(p + j, read);
        vf_store(q + j, vf_load(q + j) - read * less);
    }
    unit(q, Kp), unit(k, Kp), unit(p, Kp);
    for (int64_t i = group - 1; i >= 0; i--) { /* the first head's rows are those that all read */
        float decay[MN_TOKENS], beta[MN_TOKENS];
        mn_log_decays(decay, c, n, 0, 1, query * group + i);
        mn_strengths(beta, c, n, 0, 1, query * group + i);
        for (int64_t j = 0, to = i * m->keys; j < Kp; j += MN_W, to += MN_W) {
            vf_store(q + to, vf_load(q + j));
            vf_store(k + to, vf_load(k + j) * beta[0]);
            vf_store(p + to, -vf_load(p + j));
            vf_store(g + to, vf_set(decay[0]));
        }
    }
}

static void gdn2(const mn_mix *m, int64_t n, int64_t query, float *own) {
    const mn_rule *c = m->rule;
    int64_t Kp = mn_whole(c->K), Vp = mn_whole(c->V), group = c->HV / c->H, head = query * group;
    int64_t first = (n * c->HV + head) * m->keys;
    float *q = m->q + first, *k = m->k + first, *a = m->a + first, *g = m->g + first;
    mn_get(q, &c->q, n, 0, query, c->K);
    mn_get(k, &c->k, n, 0, query, c->K);
    mn_get(g, &c->g, n, 0, query, c->K);
    mn_open_channels(c, query, 1, (mn_from){g, 0}, g, own, a);
    unit(q, Kp), unit(k, Kp);
    mn_get(own, &c->b, n, 0, query, c->K);
    for (int64_t j = 0; j < Kp; j += MN_W) {
        vf erase = vf_sigmoid(vf_load(own + j)) * (float)c->sigmoid;
        vf_store(a + j, -(erase * vf_load(k + j)) * vf_exp(vf_load(g + j)));
    }
    for (int64_t i = 1; i < group; i++)
        for (int64_t j = 0, to = i * m->keys; j < Kp; j += MN_W, to += MN_W) {
            vf_store(q + to, vf_load(q + j));
            vf_store(k + to, vf_load(k + j));
            vf_store(a + to, vf_load(a + j));
            vf_store(g + to, vf_load(g + j));
        }
    for (int64_t i = 0; i < group; i++) {
        float *v = m->v + (n * c->HV + head + i) * m->values;
        mn_get(v, &c->v, n, 0, head + i, c->V);
        mn_get(own, &m->layer->write, n, 0, head + i, c->V);
        for (int64_t j = 0; j < Vp; j += MN_W) vf_store(v + j, vf_load(v + j) * vf_sigmoid(vf_load(own + j)));
    }
}

/* Item i: (row, query head). */
void MN_VARIANT(mix)(const mn_mix *m, int64_t begin, int64_t end, int slot) {
    float *own = m->own + slot * mn_max(m->keys, m->values);
    int64_t H = m->rule->H;
    for (int64_t i = begin; i < end; i++) {
        if (m->layer->mix == MN_COMBA) comba(m, i / H, i % H);
        else gdn2(m, i / H, i % H, own);
    }
}
