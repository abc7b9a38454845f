/* Computed in short runs of tokens, all channels of a run before the next run: rows are read in the order of memory,
 * and the last W inputs of a vector of channels stay in registers during a run. */
#include "modules/conv.h"

#include "common/load.h"

/* One vector of channels: `full`, or the first m. */
#define READ(p, i, dtype) (full ? vf_read(p, i, dtype) : vf_read_n(p, i, m, dtype))
#define WRITE(p, i, x, dtype) (full ? vf_write(p, i, x, dtype) : vf_write_n(p, i, x, m, dtype))

/* Channels c .. c + m of the input `token` of sequence n, which begins at `first`: from its state if the token is
 * before `first`. */
MN_INLINE vf input(const mn_conv *a, int64_t n, int64_t first, int64_t token, int64_t c, int64_t m, int dtype, int full) {
    if (token >= first) return READ(a->x.data, mn_row(&a->x, &a->sequences, n, token) + c, dtype);
    float part[MN_W] = {0};
    if (a->state)
        for (int64_t i = 0; i < m; i++)
            part[i] = mn_read_one(a->state, (n * a->D + c + i) * a->W + a->W + token - first, a->state_dtype);
    return vf_load(part);
}

typedef struct {
    int64_t n, first, last, begin, end; /* sequence, its bounds, the run */
} run;

/* The runs in tokens begin .. end, none longer than MN_CONV_BLOCK. */
MN_INLINE int next_run(const mn_conv *a, run *r, int64_t end) {
    if (r->begin >= end) return 0;
    if (r->begin >= r->last) {
        r->n = mn_sequence_of(&a->sequences, r->begin);
        r->first = mn_sequence_begin(&a->sequences, r->n);
        r->last = mn_sequence_end(&a->sequences, r->n);
    }
    r->end = mn_min(mn_min(r->last, end), r->begin + MN_CONV_BLOCK);
    return 1;
}

MN_INLINE void forward_channels(const mn_conv *a, const run *r, int64_t c, int64_t m, int dtype, int W, int full) {
    vf tap[MN_MOST_TAPS], seen[MN_MOST_TAPS]; /* seen[s]: the input s tokens before */
    vf bias = a->bias ? READ(a->bias, c, MN_F32) : vf_set(0);
    for (int s = 0; s < W; s++) tap[s] = READ(a->taps, s * a->D + c, MN_F32);
    for (int s = 1; s < W; s++) seen[s] = input(a, r->n, r->first, r->begin - s, c, m, dtype, full);
    int64_t at = mn_row(&a->x, &a->sequences, r->n, r->begin) + c;
    int64_t beside = a->residual.data ? mn_row(&a->residual, &a->sequences, r->n, r->begin) + c : 0;
    for (int64_t t = r->begin; t < r->end; t++, at += a->x.token, beside += a->residual.token) {
        seen[0] = READ(a->x.data, at, dtype);
        vf z = bias + seen[0] * tap[0];
        for (int s = 1; s < W; s++) z += seen[s] * tap[s];
        for (int s = W - 1; s > 0; s--) seen[s] = seen[s - 1];
        if (a->silu) z = z / (1.0f + vf_exp(-z));
        if (a->residual.data) z += READ(a->residual.data, beside, a->residual.dtype);
        WRITE(a->y, t * a->y_token + c, z, dtype);
    }
}

MN_INLINE void forward_run(const mn_conv *a, const run *r, int dtype, int W) {
    int64_t c = 0;
    for (; c + MN_W <= a->D; c += MN_W) forward_channels(a, r, c, MN_W, dtype, W, 1);
    if (c < a->D) forward_channels(a, r, c, a->D - c, dtype, W, 0);
}

void MN_VARIANT(conv_forward)(const mn_conv *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    for (run r = {.begin = begin}; next_run(a, &r, end); r.begin = r.end) {
        if (a->W != 4) forward_run(a, &r, a->x.dtype, (int)a->W);
        else if (a->x.dtype == MN_F32) forward_run(a, &r, MN_F32, 4);
        else if (a->x.dtype == MN_BF16) forward_run(a, &r, MN_BF16, 4);
        else forward_run(a, &r, MN_F16, 4);
    }
}

/* The last W inputs of sequences begin .. end. */
void MN_VARIANT(conv_state)(const mn_conv *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    for (int64_t n = begin; n < end; n++) {
        int64_t first = mn_sequence_begin(&a->sequences, n), last = mn_sequence_end(&a->sequences, n);
        for (int64_t c = 0; c < a->D; c += MN_W) {
            int64_t m = mn_min(MN_W, a->D - c);
            float part[MN_MOST_TAPS][MN_W];
            for (int64_t w = 0; w < a->W; w++) vf_store(part[w], input(a, n, first, last - a->W + w, c, m, a->x.dtype, 0));
            for (int64_t i = 0; i < m; i++)
                for (int64_t w = 0; w < a->W; w++)
                    mn_write_one(a->final, (n * a->D + c + i) * a->W + w, part[w][i], a->final_dtype);
        }
    }
}

/* Gradients of the inputs that a run's tokens read. The gradients dz of the next W - 1 tokens, which read them too, are
 * computed again. A sequence's first run also computes the gradient of the state. */
MN_INLINE void backward_channels(const mn_conv *a, const run *r, float *own, const char *after, int64_t c, int64_t m,
                                 int dtype, int W, int full) {
    vf tap[MN_MOST_TAPS], dtap[MN_MOST_TAPS + 1], seen[MN_MOST_TAPS], dz[MN_MOST_TAPS]; /* dz[s]: of token t - s */
    vf bias = a->bias ? READ(a->bias, c, MN_F32) : vf_set(0);
    for (int s = 0; s < W; s++) tap[s] = READ(a->taps, s * a->D + c, MN_F32);
    for (int s = 0; s <= W; s++) dtap[s] = READ(own, s * a->D + c, MN_F32);
    for (int s = 1; s < W; s++) seen[s] = input(a, r->n, r->first, r->begin - s, c, m, dtype, full);
    for (int s = 1; s < W; s++) dz[s] = vf_set(0);
    for (int64_t t = r->begin; t < r->end + W - 1; t++) {
        dz[0] = vf_set(0);
        if (t < r->last) {
            seen[0] = READ(a->x.data, mn_row(&a->x, &a->sequences, r->n, t) + c, dtype);
            if (after && t >= r->end) dz[0] = READ(after, (t - r->end) * a->D + c, a->dy.dtype);
            else dz[0] = READ(a->dy.data, mn_row(&a->dy, &a->sequences, r->n, t) + c, a->dy.dtype);
            if (a->silu) {
                vf z = bias + seen[0] * tap[0];
                for (int s = 1; s < W; s++) z += seen[s] * tap[s];
                vf open = vf_sigmoid(z);
                dz[0] *= open * (1.0f + z * (1.0f - open));
            }
            if (t < r->end) {
                for (int s = 0; s < W; s++) dtap[s] += dz[0] * seen[s];
                dtap[W] += dz[0];
            }
            for (int s = W - 1; s > 0; s--) seen[s] = seen[s - 1];
        }
        int64_t reader = t - (W - 1); /* dz now has all tokens that read this one */
        vf dx = dz[0] * tap[W - 1];
        for (int s = 1; s < W; s++) dx += dz[s] * tap[W - 1 - s];
        if (reader >= r->begin) {
            if (a->y) WRITE(a->y, reader * a->y_token + c, dx, dtype);
        } else if (a->dstate && r->begin == r->first) {
            float part[MN_W];
            vf_store(part, dx);
            for (int64_t i = 0; i < m; i++) a->dstate[(r->n * a->D + c + i) * W + W + reader - r->first] = part[i];
        }
        for (int s = W - 1; s > 0; s--) dz[s] = dz[s - 1];
    }
    for (int s = 0; s <= W; s++) WRITE(own, s * a->D + c, dtap[s], MN_F32);
}

MN_INLINE void backward_run(const mn_conv *a, const run *r, float *own, const char *after, int dtype, int W) {
    int64_t c = 0;
    for (; c + MN_W <= a->D; c += MN_W) backward_channels(a, r, own, after, c, MN_W, dtype, W, 1);
    if (c < a->D) backward_channels(a, r, own, after, c, a->D - c, dtype, W, 0);
}

/* Blocks begin .. end of tokens. */
void MN_VARIANT(conv_backward)(const mn_conv *a, int64_t begin, int64_t end, int slot) {
    (void)slot;
    for (int64_t i = begin; i < end; i++) {
        float *own = a->partial + i * (a->W + 1) * a->D;
        memset(own, 0, (size_t)((a->W + 1) * a->D) * 4);
        int64_t stop = mn_min((i + 1) * a->block, a->tokens);
        for (run r = {.begin = i * a->block}; next_run(a, &r, stop); r.begin = r.end) {
            const char *after = NULL;
            if (a->after && r.end == stop) after = a->after + i * (a->W - 1) * a->D * mn_width(a->dy.dtype);
            if (a->W != 4) backward_run(a, &r, own, after, a->x.dtype, (int)a->W);
            else if (a->x.dtype == MN_F32) backward_run(a, &r, own, after, MN_F32, 4);
            else if (a->x.dtype == MN_BF16) backward_run(a, &r, own, after, MN_BF16, 4);
            else backward_run(a, &r, own, after, MN_F16, 4);
        }
    }
}
