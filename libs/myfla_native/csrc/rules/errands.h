/* Rows of tensors that will be read or written soon, asked for a few at a time while something else is computed: no
 * processor guesses where they lie, and none waits for many at once. For `*.kernel.c` only. */
#ifndef MN_ERRANDS_H
#define MN_ERRANDS_H

#include "rules/rows.h"

enum { MN_MOST_ERRANDS = 20, MN_ASKED = MN_W == 16 ? 16 : 32 /* terms of a product between two times */ };

typedef struct {
    struct {
        uintptr_t next;      /* address of the next row */
        int64_t step, bytes; /* between rows, of a row */
    } of[MN_MOST_ERRANDS];
    int count, at, row; /* how many tensors, which one is under way, how many of its rows are done */
    double due, share;  /* rows that shall have been asked for; what every time adds to them */
} mn_errands;

/* The list gets rows of n channels of MN_TOKENS tokens from `token` on; they need not be there. */
MN_INLINE void mn_expect(mn_errands *list, const mn_tensor *x, int64_t row, int64_t token, int64_t head, int64_t n) {
    int64_t width = mn_width((int)x->dtype);
    if (!x->at) return;
    list->of[list->count].next = (uintptr_t)x->at + (uintptr_t)(mn_place(x, row, token, head) * width);
    list->of[list->count].step = x->token * width;
    list->of[list->count++].bytes = n * width;
}

/* All of it in so many times. */
MN_INLINE void mn_share(mn_errands *list, int64_t times) {
    list->due = 0;
    list->share = (double)(list->count * MN_TOKENS) / (double)mn_max(times, 1);
}

/* Ask for a share of the rows. */
MN_INLINE void mn_ask(mn_errands *list) {
    for (list->due += list->share; list->due >= 1 && list->at < list->count; list->due--) {
        uintptr_t next = list->of[list->at].next;
        for (int64_t i = 0; i < list->of[list->at].bytes; i += 64)
            __builtin_prefetch((const void *)(next + (uintptr_t)i), 0, 2); /* the first cache is in use */
        list->of[list->at].next += (uintptr_t)list->of[list->at].step;
        if (++list->row == MN_TOKENS) list->row = 0, list->at++;
    }
}

/* What goes into states, of MN_TOKENS tokens. */
MN_INLINE void mn_expect_writes(mn_errands *list, const mn_rule *c, int64_t row, int64_t first, int64_t head,
                                const int rule) {
    int64_t query = head / (c->HV / c->H);
    mn_expect(list, &c->k, row, first, query, c->K);
    mn_expect(list, &c->error, row, first, head, c->V);
    if (rule != MN_GATED) mn_expect(list, &c->g, row, first, head, c->K);
    if (rule != MN_DPLR) return;
    mn_expect(list, &c->b, row, first, query, c->K);
    mn_expect(list, &c->v, row, first, head, c->V);
}

/* What a backward needs soon, in so many times: where gradients go; tokens before, whose turn comes next; those MN_KEPT
 * before, whose states are found again before theirs, if a second cache can hold rows so far apart for so long. */
MN_INLINE void mn_expect_next(mn_errands *list, const mn_rule *c, const mn_rule_grad *g, int64_t row, int64_t first,
                              int64_t head, int64_t times, const int rule) {
    enum { FAR = 4096 }; /* bytes */
    int64_t query = head / (c->HV / c->H), K = c->K, V = c->V, before = first - MN_TOKENS;
    list->count = list->at = list->row = 0;
    mn_expect(list, &g->dv, row, rule == MN_GATED ? before : first, head, V); /* gated: written before the products */
    mn_expect(list, &g->dq, row, first, query, K);
    mn_expect(list, &g->dk, row, first, query, K);
    if (rule != MN_GATED) mn_expect(list, &g->dg, row, first, head, K);
    if (rule == MN_DPLR) mn_expect(list, &g->dbeta, row, first, query, K);
    if (rule == MN_DPLR) mn_expect(list, &g->db, row, first, query, K);
    mn_expect(list, &c->q, row, before, query, K);
    mn_expect(list, &g->go, row, before, head, V);
    if (rule == MN_DPLR) mn_expect(list, &c->beta, row, before, query, K);
    mn_expect_writes(list, c, row, before, head, rule);
    if (c->k.token * mn_width((int)c->k.dtype) <= FAR) mn_expect_writes(list, c, row, first - MN_KEPT, head, rule);
    mn_share(list, times);
}

#endif
