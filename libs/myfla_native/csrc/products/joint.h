/* Products of a matrix x [M, D] with weights [N, D], whose rows lie anywhere: several projections of one input are one
 * product, without a copy of their weights.
 *
 *     forward   y = x w^T  [M, N]          inputs   x = y w  [M, D]          weights   w = y^T x  [N, D] */
#ifndef MN_JOINT_H
#define MN_JOINT_H

#include "common/pick.h"

enum { MN_TERMS = 512, MN_COLUMNS = 512 }; /* of the block of the right matrix that is packed at a time */
enum { MN_MOST_ROWS = 12 };                 /* of the left matrix, computed together */

typedef struct {
    float *x, *y; /* rows x_row and y_row apart */
    int64_t x_row, y_row, M, N, D;
    float *const *w; /* [N] addresses of rows [D] */
    float *scratch;  /* for each slot a block of the right matrix, and rows of the left one */
    int64_t block;   /* floats of the former; the latter has MN_TERMS * MN_MOST_ROWS */
} mn_joint;

/* Rows begin to end of the result. */
MN_KERNEL(joint_forward, (const mn_joint *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(joint_inputs, (const mn_joint *a, int64_t begin, int64_t end, int slot))
MN_KERNEL(joint_weights, (const mn_joint *a, int64_t begin, int64_t end, int slot))

#endif
