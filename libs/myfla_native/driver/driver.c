/* Calls of the library against loops in double, without Python: for processors that this machine can only emulate.
 *
 *     python libs/myfla_native/toolchain.py --driver FOLDER --target linux-arm64 && qemu-aarch64 FOLDER/driver */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rules/rule.h"

int mn_interface(void);
int mn_set_level(int wanted);
int mn_conv_forward(
    const void *, int64_t, int64_t, int, const void *, int64_t, int64_t, int, const void *, int, const void *, int,
    const void *, int, const int64_t *, int64_t, int64_t, int64_t, int64_t, int, void *, void *, int, int);
int mn_norm_forward(
    const void *, int64_t, int, const void *, int64_t, int, int, const void *, int, const void *, int, int64_t, int64_t,
    int64_t, double, int, int, void *, int, float *, float *, int);
int mn_shift_forward(const void *, int64_t, int64_t, int, const void *, int, const int64_t *, int64_t, int64_t, int64_t, void *, void *, int);
int mn_rule_forward(const mn_rule *);

static float *made(int64_t count, float scale) {
    float *x = malloc((size_t)count * 4);
    for (int64_t i = 0; i < count; i++) x[i] = scale * ((float)rand() / (float)RAND_MAX * 2 - 1);
    return x;
}

static int failed;

static void check(const char *what, const float *got, const double *want, int64_t count) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < count; i++) error += (got[i] - want[i]) * (got[i] - want[i]), size += want[i] * want[i];
    error = sqrt(error / size);
    printf("%-28s error %.1e\n", what, error);
    if (!(error < 2e-6)) failed = 1;
}

static void conv(int64_t N, int64_t T, int64_t D, int64_t W, int threads) {
    float *x = made(N * T * D, 1), *w = made(D * W, 1), *bias = made(D, 1), *state = made(N * D * W, 1), *y = made(N * T * D, 1);
    double *want = calloc((size_t)(N * T * D), 8);
    mn_conv_forward(x, T * D, D, MN_F32, NULL, 0, 0, 0, w, MN_F32, bias, MN_F32, state, MN_F32, NULL, N, T, D, W, 1, y, NULL, 0, threads);
    for (int64_t n = 0; n < N; n++)
        for (int64_t t = 0; t < T; t++)
            for (int64_t d = 0; d < D; d++) {
                double z = bias[d];
                for (int64_t s = 0; s < W; s++)
                    z += (double)w[d * W + W - 1 - s] * (t >= s ? x[(n * T + t - s) * D + d] : state[(n * D + d) * W + W + t - s]);
                want[(n * T + t) * D + d] = z / (1 + exp(-z));
            }
    check("convolution with SiLU", y, want, N * T * D);
    free(x), free(w), free(bias), free(state), free(y), free(want);
}

static void norm(int64_t rows, int64_t D, int threads) {
    float *h = made(rows * D, 3), *g = made(rows * D, 4), *w = made(D, 1), *y = made(rows * D, 1);
    double *want = calloc((size_t)(rows * D), 8);
    mn_norm_forward(h, D, MN_F32, g, D, MN_F32, 1, w, MN_F32, NULL, 0, rows, D, 1, 1e-5, 0, 0, y, MN_F32, NULL, NULL, threads);
    for (int64_t i = 0; i < rows; i++) {
        double square = 0;
        for (int64_t d = 0; d < D; d++) square += (double)h[i * D + d] * h[i * D + d];
        for (int64_t d = 0; d < D; d++)
            want[i * D + d] = h[i * D + d] / sqrt(square / (double)D + 1e-5) * w[d] * g[i * D + d] / (1 + exp(-(double)g[i * D + d]));
    }
    check("gated RMS norm", y, want, rows * D);
    free(h), free(g), free(w), free(y), free(want);
}

static mn_tensor tensor(const float *x, int64_t row, int64_t token, int64_t head, int64_t channel) {
    return (mn_tensor){(int64_t)(intptr_t)x, row, token, head, channel, MN_F32};
}

static void gated(int64_t N, int64_t T, int64_t H, int64_t K, int64_t V, int threads) {
    float *q = made(N * T * H * K, 1), *k = made(N * T * H * K, 1), *v = made(N * T * H * V, 1), *g = made(N * T * H, 0.5f);
    float *beta = made(N * T * H, 0.5f), *o = made(N * T * H * V, 1), *final = made(N * H * K * V, 1);
    double *want = calloc((size_t)(N * T * H * V), 8), *S = malloc((size_t)(K * V) * 8), *e = malloc((size_t)V * 8);
    for (int64_t i = 0; i < N * T * H; i++) g[i] -= 0.5f, beta[i] += 0.5f;
    mn_rule call = {
        .rule = MN_GATED, .N = N, .T = T, .H = H, .HV = H, .K = K, .V = V, .l2norm = 1, .threads = threads, .scale = 0.5,
        .q = tensor(q, T * H * K, H * K, K, 1), .k = tensor(k, T * H * K, H * K, K, 1), .v = tensor(v, T * H * V, H * V, V, 1),
        .g = tensor(g, T * H, H, 1, 0), .beta = tensor(beta, T * H, H, 1, 0), .final = tensor(final, H * K * V, V, K * V, 1),
        .o = tensor(o, T * H * V, H * V, V, 1)};
    mn_rule_forward(&call);
    for (int64_t n = 0; n < N; n++)
        for (int64_t h = 0; h < H; h++) {
            memset(S, 0, (size_t)(K * V) * 8);
            for (int64_t t = 0; t < T; t++) {
                int64_t at = (n * T + t) * H + h;
                double qq = 1e-6, kk = 1e-6;
                for (int64_t i = 0; i < K; i++) qq += (double)q[at * K + i] * q[at * K + i], kk += (double)k[at * K + i] * k[at * K + i];
                for (int64_t i = 0; i < K * V; i++) S[i] *= exp(g[at]);
                for (int64_t j = 0; j < V; j++) {
                    e[j] = v[at * V + j];
                    for (int64_t i = 0; i < K; i++) e[j] -= S[i * V + j] * k[at * K + i] / sqrt(kk);
                }
                for (int64_t i = 0; i < K; i++)
                    for (int64_t j = 0; j < V; j++) {
                        S[i * V + j] += k[at * K + i] / sqrt(kk) * beta[at] * e[j];
                        want[at * V + j] += 0.5 * q[at * K + i] / sqrt(qq) * S[i * V + j];
                    }
            }
        }
    check("gated delta rule", o, want, N * T * H * V);
    free(q), free(k), free(v), free(g), free(beta), free(o), free(final), free(want), free(S), free(e);
}

/* KDA with its gate, on states with keys first or values first. */
static void kda(int64_t N, int64_t T, int64_t H, int64_t HV, int64_t K, int64_t V, int gate, int values_first, int threads) {
    int64_t size = HV * K * V, key = values_first ? 1 : V, value = values_first ? K : 1;
    float *q = made(N * T * H * K, 0.3f), *k = made(N * T * H * K, 0.3f), *v = made(N * T * HV * V, 1), *g = made(N * T * HV * K, 3);
    float *beta = made(N * T * HV, 2), *A_log = made(HV, 1), *bias = made(HV * K, 1), *state = made(N * size, 1);
    float *o = made(N * T * HV * V, 1), *final = made(N * size, 1);
    double *want = calloc((size_t)(N * T * HV * V), 8), *S = malloc((size_t)(N * size) * 8);
    for (int64_t i = 0; i < N * size; i++) S[i] = state[i];
    mn_rule call = {
        .rule = MN_KDA, .N = N, .T = T, .H = H, .HV = HV, .K = K, .V = V, .gate = gate, .sigmoid = 2, .threads = threads,
        .scale = 0.5, .lower_bound = -3, .q = tensor(q, T * H * K, H * K, K, 1), .k = tensor(k, T * H * K, H * K, K, 1),
        .v = tensor(v, T * HV * V, HV * V, V, 1), .g = tensor(g, T * HV * K, HV * K, K, 1),
        .beta = tensor(beta, T * HV, HV, 1, 0), .A_log = tensor(A_log, 0, 0, 1, 0), .dt_bias = tensor(bias, 0, 0, K, 1),
        .initial = tensor(state, size, key, K * V, value), .final = tensor(final, size, key, K * V, value),
        .o = tensor(o, T * HV * V, HV * V, V, 1)};
    mn_rule_forward(&call);
    for (int64_t n = 0; n < N; n++)
        for (int64_t h = 0; h < HV; h++)
            for (int64_t t = 0; t < T; t++) {
                int64_t at = (n * T + t) * HV + h, of_q = ((n * T + t) * H + h / (HV / H)) * K;
                double *of = S + (n * HV + h) * K * V, rate = exp(A_log[h]);
                for (int64_t i = 0; i < K; i++) {
                    double x = (double)g[at * K + i] + bias[h * K + i];
                    double decay = exp(gate == MN_SOFTPLUS ? -rate * log1p(exp(x)) : -3 / (1 + exp(-rate * x)));
                    for (int64_t j = 0; j < V; j++) of[i * key + j * value] *= decay;
                }
                for (int64_t j = 0; j < V; j++) {
                    double e = v[at * V + j];
                    for (int64_t i = 0; i < K; i++) e -= of[i * key + j * value] * k[of_q + i];
                    for (int64_t i = 0; i < K; i++) {
                        of[i * key + j * value] += k[of_q + i] * e * 2 / (1 + exp(-(double)beta[at]));
                        want[at * V + j] += 0.5 * q[of_q + i] * of[i * key + j * value];
                    }
                }
            }
    check("KDA", o, want, N * T * HV * V);
    check("KDA, final states", final, S, N * size);
    free(q), free(k), free(v), free(g), free(beta), free(A_log), free(bias), free(state), free(o), free(final), free(want), free(S);
}

int main(void) {
    printf("interface %d, level %d\n", mn_interface(), mn_set_level(-1));
    for (int threads = 1; threads < 4; threads++) {
        conv(2, 70, 37, 4, threads);
        conv(1, 40, 16, 3, threads);
        norm(50, 67, threads);
        gated(2, 37, 3, 32, 32, threads);
        gated(1, 70, 2, 19, 13, threads);
        gated(1, 40, 2, 128, 128, threads);
        for (int gate = MN_SOFTPLUS; gate <= MN_BOUNDED; gate++)
            for (int values_first = 0; values_first < 2; values_first++) {
                kda(2, 37, 1, 2, 32, 32, gate, values_first, threads);
                kda(3, 1, 2, 4, 19, 32, gate, values_first, threads);
                kda(1, 1, 2, 2, 64, 13, gate, values_first, threads);
            }
    }
    puts(failed ? "FAILED" : "all equal");
    return failed;
}
