#include "products/joint.h"

#include "common/memory.h"

enum { SHARE = 1 << 19 }; /* multiplications for each further thread */

/* The product of one `kind`, 0 forward, 1 inputs, 2 weights: see joint.h. x [M, D] and y [M, N] with rows x_row and
 * y_row apart; `weights` has the addresses of `pieces` weights without gaps, [sizes[p], D] each, N rows together. */
MN_API int mn_joint_product(int kind, void *x, int64_t x_row, void *y, int64_t y_row, int64_t M, int64_t D,
                            const int64_t *weights, const int64_t *sizes, int64_t pieces, int threads) {
    mn_joint a = {.x = x, .y = y, .x_row = x_row, .y_row = y_row, .M = M, .D = D};
    for (int64_t p = 0; p < pieces; p++) a.N += sizes[p];
    int64_t rows = kind == 2 ? a.N : M, most = mn_min(threads, mn_max(1, M * D * a.N / SHARE));
    int64_t piece = mn_blocks(mn_blocks(rows, MN_MOST_ROWS), most) * MN_MOST_ROWS;
    float **w = mn_alloc(a.N * (int64_t)sizeof *w);
    int64_t columns = mn_min(kind ? D : a.N, MN_COLUMNS), terms = mn_min(kind == 0 ? D : kind == 1 ? a.N : M, MN_TERMS);
    a.block = terms * mn_padded(columns); /* whole vectors */
    a.scratch = mn_alloc(mn_slots(rows, piece, (int)most) * (a.block + MN_TERMS * MN_MOST_ROWS) * 4);
    int status = w && a.scratch ? MN_DONE : MN_NO_MEMORY;
    if (!status) {
        for (int64_t p = 0, n = 0; p < pieces; p++)
            for (int64_t i = 0; i < sizes[p]; i++) w[n++] = (float *)(intptr_t)weights[p] + i * D;
        a.w = w;
        mn_task task = (mn_task)MN_PICK(joint_forward);
        if (kind == 1) task = (mn_task)MN_PICK(joint_inputs);
        if (kind == 2) task = (mn_task)MN_PICK(joint_weights);
        mn_parallel(task, &a, rows, piece, (int)most);
    }
    mn_free(w);
    mn_free(a.scratch);
    return status;
}
