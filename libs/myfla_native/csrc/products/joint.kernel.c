/* A block of the right matrix is packed in panels of two vectors of columns; a panel of UP rows of the left one is
 * copied beside it and multiplied by all panels of the block, while the next rows are prefetched. Every number of the
 * result is a sum over blocks of MN_TERMS terms, in their order, whatever the threads. */
#include "products/joint.h"

#include "common/products.h"
#include "common/transpose.h"

enum { UP = MN_W == 16 ? 12 : 6, WIDE = 2 * MN_W };
enum { FORWARD, INPUTS, WEIGHTS };

/* Row l of the right matrix (FORWARD: column l), and row i of the result. */
MN_INLINE const float *right(const mn_joint *a, int64_t l, const int kind) {
    return kind == WEIGHTS ? a->x + l * a->x_row : a->w[l];
}
MN_INLINE float *result(const mn_joint *a, int64_t i, const int kind) {
    return kind == FORWARD ? a->y + i * a->y_row : kind == INPUTS ? a->x + i * a->x_row : a->w[i];
}

/* The columns of the panel that begins `left` columns before the end. */
MN_INLINE int64_t panel(int64_t left) { return left > MN_W ? WIDE : MN_W; }

MN_INLINE vf some(const float *p, int64_t n) { return n >= MN_W ? vf_load(p) : n > 0 ? vf_load_n(p, n) : (vf){0}; }

/* Columns j to j + columns, terms l to l + terms of the right matrix; zeros beyond the last column. */
static void pack(const mn_joint *a, float *to, int64_t j, int64_t columns, int64_t l, int64_t terms, const int kind) {
    for (int64_t p = 0, wide; p < columns; p += wide, to += terms * wide) {
        wide = panel(columns - p);
        for (int64_t t = 0; t < terms; t++)
            for (int64_t c = 0; c < wide; c += MN_W)
                vf_store(to + t * wide + c, some(right(a, l + t, kind) + j + p + c, columns - p - c));
    }
}

/* The same where the columns are rows in memory. */
static void pack_turned(const mn_joint *a, float *to, int64_t j, int64_t columns, int64_t l, int64_t terms) {
    float part[MN_W * MN_W], turned[MN_W * MN_W];
    for (int64_t p = 0, wide; p < columns; p += wide, to += terms * wide) {
        wide = panel(columns - p);
        for (int64_t c = 0; c < wide; c += MN_W)
            for (int64_t t = 0; t < terms; t += MN_W) {
                for (int i = 0; i < MN_W; i++) {
                    int64_t at = p + c + i;
                    vf_store(part + i * MN_W, at < columns ? some(a->w[j + at] + l + t, terms - t) : (vf){0});
                }
                mn_transpose(part, MN_W, MN_W, MN_W, turned, MN_W);
                for (int64_t i = 0; i < mn_min(MN_W, terms - t); i++)
                    vf_store(to + (t + i) * wide + c, vf_load(turned + i * MN_W));
            }
    }
}

/* Memory that is read soon: `lines` cache lines from `at` on, as many `skip` bytes behind their end, and so on for some
 * rows. */
typedef struct {
    uintptr_t at, skip;
    int64_t lines, rows;
} coming;

/* What `take` reads for the rows from i on. WEIGHTS: the line of the last row's number of each term; those of the rows
 * before it are often the same, or have been read with the rows before. */
MN_INLINE coming rows_from(const mn_joint *a, int64_t i, int64_t l, int64_t terms, const int kind) {
    const float *x = kind == FORWARD ? a->x + i * a->x_row + l : a->y + (kind == WEIGHTS ? l * a->y_row + i + UP - 1
                                                                                       : i * a->y_row + l);
    int64_t lines = kind == WEIGHTS ? 1 : mn_blocks(terms, 16), row = kind == FORWARD ? a->x_row : a->y_row;
    return (coming){(uintptr_t)x, (uintptr_t)(4 * row - 64 * lines), lines, kind == WEIGHTS ? terms : UP};
}

/* Rows i to i + rows of the left matrix, zeros up to UP: rows MN_TERMS apart; WEIGHTS: terms UP apart. */
MN_INLINE void take(const mn_joint *a, float *to, int64_t i, int64_t rows, int64_t l, int64_t terms, const int kind) {
    if (kind == WEIGHTS) {
        const float *from = a->y + l * a->y_row + i;
        for (int64_t t = 0; t < terms; t++, from += a->y_row, to += UP)
            if (rows == UP) memcpy(to, from, UP * 4);
            else
                for (int64_t r = 0; r < UP; r++) to[r] = r < rows ? from[r] : 0;
        return;
    }
    const float *from = (kind == FORWARD ? a->x + i * a->x_row : a->y + i * a->y_row) + l;
    for (int64_t r = 0; r < UP; r++, from += kind == FORWARD ? a->x_row : a->y_row, to += MN_TERMS)
        if (r < rows) memcpy(to, from, (size_t)terms * 4);
        else memset(to, 0, (size_t)terms * 4);
}

/* UP rows times a panel of nv vectors: to[r] + j receives `columns` numbers of row r < rows, or is increased by them. */
MN_INLINE void multiply(const float *a, const float *b, int64_t terms, float *const *to, int64_t j, int64_t rows,
                        int64_t columns, int add, coming next, const int nv, const int64_t row, const int64_t term) {
    vf sum[UP * 2];
    uintptr_t at = next.at;
    int64_t lines = next.lines, left = next.rows;
    for (int64_t r = 0; r < rows; r++) __builtin_prefetch(to[r] + j, 1), __builtin_prefetch(to[r] + j + MN_W, 1);
    MN_UNROLL
    for (int i = 0; i < UP; i++)
        for (int v = 0; v < nv; v++) sum[i * nv + v] = (vf){0};
    for (int64_t l = 0; l < terms; l++, b += nv * MN_W) {
        vf x[2];
        __builtin_prefetch((const void *)at);
        at += 64;
        if (--lines == 0) {
            lines = next.lines, at += next.skip;
            if (--left == 0) left = next.rows, at = next.at;
        }
        for (int v = 0; v < nv; v++) x[v] = vf_load(b + v * MN_W);
        MN_UNROLL
        for (int i = 0; i < UP; i++)
            for (int v = 0; v < nv; v++) sum[i * nv + v] += x[v] * a[i * row + l * term];
    }
    MN_UNROLL
    for (int i = 0; i < UP; i++)
        for (int v = 0; v < nv && i < rows; v++) {
            float *at = to[i] + j + v * MN_W;
            int64_t n = columns - v * MN_W;
            if (add) sum[i * nv + v] += some(at, n);
            if (n >= MN_W) vf_store(at, sum[i * nv + v]);
            else if (n > 0) vf_store_n(at, sum[i * nv + v], n);
        }
}

typedef void multiplication(const float *a, const float *b, int64_t terms, float *const *to, int64_t j, int64_t rows,
                            int64_t columns, int add, coming next);

/* A compiler that inlines these has too few registers for their sums. */
#define MULTIPLY(name, nv, row, term)                                                                               \
    static __attribute__((noinline)) void name(const float *a, const float *b, int64_t terms, float *const *to,     \
                                               int64_t j, int64_t rows, int64_t columns, int add, coming next) {    \
        multiply(a, b, terms, to, j, rows, columns, add, next, nv, row, term);                                      \
    }
MULTIPLY(by_rows, 2, MN_TERMS, 1)
MULTIPLY(by_rows_narrow, 1, MN_TERMS, 1)
MULTIPLY(by_terms, 2, 1, UP)
MULTIPLY(by_terms_narrow, 1, 1, UP)

MN_INLINE void product(const mn_joint *a, int64_t begin, int64_t end, int slot, const int kind) {
    float *block = a->scratch + slot * (a->block + MN_TERMS * MN_MOST_ROWS), *rows_of = block + a->block, *to[UP];
    multiplication *wide = kind == WEIGHTS ? by_terms : by_rows;
    multiplication *narrow = kind == WEIGHTS ? by_terms_narrow : by_rows_narrow;
    int64_t all_columns = kind == FORWARD ? a->N : a->D, all = kind == FORWARD ? a->D : kind == INPUTS ? a->N : a->M;
    for (int64_t j = 0; j < all_columns; j += MN_COLUMNS)
        for (int64_t l = 0; l < all; l += MN_TERMS) {
            int64_t columns = mn_min(MN_COLUMNS, all_columns - j), terms = mn_min(MN_TERMS, all - l);
            if (kind == FORWARD) pack_turned(a, block, j, columns, l, terms);
            else pack(a, block, j, columns, l, terms, kind);
            for (int64_t i = begin; i < end; i += UP) {
                int64_t rows = mn_min(UP, end - i), p = 0;
                take(a, rows_of, i, rows, l, terms, kind);
                for (int64_t r = 0; r < rows; r++) to[r] = result(a, i + r, kind) + j;
                coming next = rows_from(a, i + UP, l, terms, kind), none = {(uintptr_t)rows_of, 0, terms, 1};
                for (; columns - p > MN_W; p += WIDE)
                    wide(rows_of, block + p * terms, terms, to, p, rows, columns - p, l > 0,
                         columns - p > WIDE ? none : next);
                if (p < columns) narrow(rows_of, block + p * terms, terms, to, p, rows, columns - p, l > 0, next);
            }
        }
}

void MN_VARIANT(joint_forward)(const mn_joint *a, int64_t begin, int64_t end, int slot) {
    product(a, begin, end, slot, FORWARD);
}
void MN_VARIANT(joint_inputs)(const mn_joint *a, int64_t begin, int64_t end, int slot) {
    product(a, begin, end, slot, INPUTS);
}
void MN_VARIANT(joint_weights)(const mn_joint *a, int64_t begin, int64_t end, int slot) {
    product(a, begin, end, slot, WEIGHTS);
}
