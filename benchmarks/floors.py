"""The least work an algorithm can do, for the share of it that a measured time reaches.

The chunk forms. A chunk of C tokens of one head is a list of matrix products. Some of them are products with, or
into, a triangle, and only half of such a product is needed. For the gated delta rule, in multiplications::

    K K^T below the diagonal, Q K^T up to it             2 triangles   C C K
    solving for delta, (pair * Q K^T) delta              2 triangles   C C V
    K S, Q S, K^T delta                                                3 C K V

so ``3 K V + C (K + V)`` multiplications, and as many additions, for every token of a head. RWKV-7 has the pairs
``a b, a k, q b, q k`` and the reads and writes ``a S, q S, k^T v, b^T u``: ``4 K V + 2 C (K + V)``.

The sum grows with C. It is taken at `CHUNK` tokens: smaller chunks would save at most C (K + V) more (4 % at C = 16,
K = V = 128) with products that are too narrow to reach the rate of a matrix product.

No implementation reaches this floor: matrix products compute complete squares, and are fast only for larger chunks. The
multiplications of such an implementation, `dense_flops`, are reported as well.

The backward of every product is two products of its size (with the state and delta of the forward kept, so nothing
is computed again), of a triangle again triangles; the backward of the solve is another solve and one triangle. So
forward and backward together need three times the forward.

A recurrent step reads the state once and writes it once: `state_bytes`.
"""

from typing import List, NamedTuple

CHUNK = 16

RUN_CHUNK = 64
"""Tokens in a chunk of the official kernels and most others."""


class Product(NamedTuple):
    """``[rows, inner] @ [inner, columns]``, of which only a triangle is needed if ``triangle``."""

    rows: int
    inner: int
    columns: int
    triangle: bool = False
    solve: bool = False

    @property
    def dense(self) -> int:
        return 2 * self.rows * self.inner * self.columns

    @property
    def needed(self) -> int:
        return self.dense // 2 if self.triangle else self.dense


def gated_delta_rule_products(chunk: int, key: int, value: int) -> List[Product]:
    """One chunk of one head, forward."""
    pairs = 2 * [Product(chunk, key, chunk, triangle=True)]
    within = [Product(chunk, chunk, value, triangle=True, solve=True), Product(chunk, chunk, value, triangle=True)]
    states = 2 * [Product(chunk, key, value)] + [Product(key, chunk, value)]
    return pairs + within + states


def rwkv7_products(chunk: int, key: int, value: int) -> List[Product]:
    """One chunk of one head, forward."""
    pairs = 4 * [Product(chunk, key, chunk, triangle=True)]
    within = [Product(chunk, chunk, value, triangle=True, solve=True)]
    within += 3 * [Product(chunk, chunk, value, triangle=True)]
    states = 2 * [Product(chunk, key, value)] + 2 * [Product(key, chunk, value)]
    return pairs + within + states


PRODUCTS = {"gated delta rule": gated_delta_rule_products, "RWKV-7": rwkv7_products}


def op_flops(op: str, batch: int, tokens: int, heads: int, key: int, value: int, backward: bool) -> float:
    """Flops of the products that ``op`` needs at least.

    Args:
        op: a key of `PRODUCTS`.
        batch, tokens, heads, key, value: the shape.
        backward: forward and backward together, instead of forward alone.
    """
    one = sum(product.needed for product in PRODUCTS[op](CHUNK, key, value))
    return (3 if backward else 1) * one * batch * heads * tokens / CHUNK


def dense_flops(op: str, batch: int, tokens: int, heads: int, key: int, value: int, backward: bool) -> float:
    """Flops of the products in an implementation: whole products, in chunks of `RUN_CHUNK` tokens."""
    one = sum(product.dense for product in PRODUCTS[op](RUN_CHUNK, key, value))
    return (3 if backward else 1) * one * batch * heads * tokens / RUN_CHUNK


def layer_flops(tokens: int, hidden: int, heads: int, key: int, value: int) -> float:
    """A GatedDeltaNet layer's training step: projections q, k, v, gate, output, two per head, and the op."""
    projections = 2 * tokens * hidden * heads * (2 * key + 3 * value + 2)
    return 3.0 * projections + op_flops("gated delta rule", 1, tokens, heads, key, value, backward=True)


def state_bytes(batch: int, heads: int, key: int, value: int) -> float:
    """Bytes a decoding step moves: the float32 state, read once and written once."""
    return 2.0 * 4 * batch * heads * key * value
