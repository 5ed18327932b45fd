"""Routing: router (which experts), router_weights and expert_weights (with what weights), expert_order (the pairs
sorted by expert), identity_experts (those that give back what they are given)."""

from __future__ import annotations

from collections.abc import Sequence

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import CONTROL, Operand, view_of
from dsv3c.targets.calls.router import ExpertOrder, ExpertWeights, IdentityExperts, Router, RouterWeights, order_size
from dsv3c.targets.gpu.kernels.frame import (
    LOWEST,
    Buffer,
    Buffers,
    Expr,
    Extent,
    Variant,
    add,
    barrier,
    f32,
    local,
    prim_func,
    row_count,
    shared,
    spread,
    store,
)
from dsv3c.targets.gpu.kernels.functions import exp, sigmoid
from dsv3c.targets.gpu.kernels.rows import elementwise
from dsv3c.targets.gpu.kernels.subgroups import Exchange, Runs, forms, larger


def router_operands(spec: Router) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    bias = (Operand("bias", "f32", spec.experts),) if spec.has_bias else ()
    logits, y = Operand("logits", "f32", m * spec.experts), Operand("y", "i32", m * spec.top_k)
    return (CONTROL, logits, *bias, y)


def order_operands(spec: ExpertOrder) -> tuple[Operand, ...]:
    ids = Operand("ids", "i32", spec.rows.maximum * spec.top_k)
    return (CONTROL, ids, Operand("y", "i32", order_size(spec)))


def router(spec: Router, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """A workgroup a token, scores in shared memory.

    A score or rate always has the same thread, but for `rate`, which reads those of all; so no other barrier than that
    before it and those of the picks is needed.
    """
    grid, width = (Extent(1, spec.rows),), spec.experts // spec.n_group

    def emit(exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        logits, first = buffers["logits"], T.bind(groups[0] * spec.experts)
        runs = Runs(exchange, thread, ("float32", "int32"))
        scores, best = shared(spec.experts), shared(spec.n_group)
        top, total = _softmax(spec.scoring, logits, first, spec.experts, thread, exchange)

        def score(e: Expr) -> None:
            value = _score(spec.scoring, logits[first + e], top, total)
            store(scores, e, value + buffers["bias"][e] if spec.has_bias else value)

        def rate(g: Expr) -> None:
            store(best, g, _group_score(scores, g * width, width, spec.group_score))

        def leave(e: Expr) -> None:
            # A group that was picked holds LOWEST now; the others lose their experts.
            with T.If(best[T.floordiv(e, width)] > f32(LOWEST)), T.Then():
                store(scores, e, f32(LOWEST))

        spread(spec.experts, thread, score)
        if spec.n_group > 1:
            barrier()
            spread(spec.n_group, thread, rate)
            with T.serial(0, spec.topk_group):
                _pick(best, spec.n_group, thread, runs)
            spread(spec.experts, thread, leave)
        with T.serial(0, spec.top_k) as j:
            picked = _pick(scores, spec.experts, thread, runs)
            with T.If(thread == 0), T.Then():
                store(buffers["y"], groups[0] * spec.top_k + j, picked)

    return forms(operands, grid, spec.rows, emit)


def router_weights(spec: RouterWeights, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """A workgroup a token."""
    grid = (Extent(1, spec.rows),)

    def emit(exchange: Exchange, buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        logits, ids, first = buffers["logits"], buffers["ids"], T.bind(groups[0] * spec.experts)
        chosen, runs, sums = T.bind(groups[0] * spec.top_k), Runs(exchange, thread), local(1)
        top, total = _softmax(spec.scoring, logits, first, spec.experts, thread, exchange)
        store(sums, 0, f32(0))

        def score(j: Expr) -> Expr:
            return T.bind(_score(spec.scoring, logits[first + ids[chosen + j]], top, total))

        def count(j: Expr) -> None:
            store(sums, 0, sums[0] + score(j))

        spread(spec.top_k, thread, count)
        divisor = runs.reduced(sums[0], add) + f32(1e-20) if spec.norm_topk_prob else f32(1)
        factor = T.bind(f32(spec.scale) / divisor)
        spread(spec.top_k, thread, lambda j: store(buffers["y"], chosen + j, score(j) * factor))

    made = forms(operands, grid, spec.rows, emit)
    return made if spec.norm_topk_prob or spec.scoring == "softmax" else made[-1:]  # else there are no sums


def expert_weights(spec: ExpertWeights, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        at = T.bind(row * spec.top_k + column)
        store(buffers["y"], at, T.Select(buffers["ids"][at] < spec.experts, buffers["weights"][at], f32(0)))

    return elementwise(operands, spec.rows, spec.top_k, body)


def identity_experts(spec: IdentityExperts, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    view = view_of(spec.view, 1, spec.d)

    def body(buffers: Buffers, row: Expr, column: Expr) -> None:
        total = local(1)
        store(total, 0, f32(0))
        with T.serial(0, spec.top_k) as j:
            at = T.bind(row * spec.top_k + j)
            store(total, 0, total[0] + T.Select(buffers["ids"][at] < spec.experts, f32(0), buffers["weights"][at]))
        store(buffers["y"], row * spec.d + column, buffers["x"][view.start(row) + column] * total[0])

    return elementwise(operands, spec.rows, spec.d, body)


def expert_order(spec: ExpertOrder, operands: Sequence[Operand]) -> tuple[Variant, ...]:
    """A counting sort in one workgroup: a thread counts, then lists the pairs of an expert, which keeps their order."""
    grid, starts, pairs = (Extent(),), 1 + spec.total, 2 + 2 * spec.total

    def emit(buffers: Buffers, groups: Sequence[Expr], thread: Expr) -> None:
        ids, y, m = buffers["ids"], buffers["y"], row_count(buffers, spec.rows)
        place, counter = shared(spec.total, "int32"), local(2, "int32")
        picks = T.bind(m * spec.top_k)

        def count(e: Expr) -> None:
            store(counter, 0, T.if_then_else(e < spec.experts, 0, m))
            with T.serial(0, picks) as i, T.If(T.And(ids[i] == e, e < spec.experts)), T.Then():
                store(counter, 0, counter[0] + 1)
            store(place, e, counter[0])

        def head() -> None:
            store(counter, 0, T.int32(0))
            store(counter, 1, T.int32(0))
            with T.serial(0, spec.total) as e:
                size = T.bind(place[e])
                with T.If(size > 0), T.Then():
                    store(y, 1 + counter[0], e)
                    store(y, starts + counter[0], counter[1])
                    store(place, e, counter[1])
                    store(counter, 0, counter[0] + 1)
                    store(counter, 1, counter[1] + size)
            store(y, 0, counter[0])
            store(y, starts + counter[0], counter[1])

        def fill(e: Expr) -> None:
            store(counter, 0, place[e])

            def append(pair: Expr) -> None:
                store(y, pairs + counter[0], pair)
                store(counter, 0, counter[0] + 1)

            with T.If(e < spec.experts):
                with T.Then():
                    with T.serial(0, picks) as i, T.If(ids[i] == e), T.Then():
                        row = T.bind(T.floordiv(i, spec.top_k))
                        append(row * spec.per_token + (i - row * spec.top_k))
                with T.Else():
                    with T.serial(0, m) as row:
                        append(row * spec.per_token + spec.top_k + (e - spec.experts))

        spread(spec.total, thread, count)
        barrier()
        with T.If(thread == 0), T.Then():
            head()
        barrier()
        spread(spec.total, thread, fill)

    return (Variant(grid, lambda: prim_func(operands, grid, emit), spec.rows),)


def _softmax(scoring: str, logits: Buffer, first: Expr, n: int, thread: Expr, exchange: Exchange) -> tuple[Expr, Expr]:
    """The largest of n logits and the sum of exp of their distances to it; nothing for another scoring."""
    if scoring != "softmax":
        return f32(0), f32(1)
    runs, kept = Runs(exchange, thread), local(2)
    store(kept, 0, f32(LOWEST))
    store(kept, 1, f32(0))
    spread(n, thread, lambda e: store(kept, 0, T.max(kept[0], logits[first + e])))
    top = runs.reduced(kept[0], T.max)
    spread(n, thread, lambda e: store(kept, 1, kept[1] + exp(logits[first + e] - top)))
    runs.renew_all()
    return top, runs.reduced(kept[1], add)


def _score(scoring: str, logit: Expr, top: Expr, total: Expr) -> Expr:
    return exp(logit - top) / total if scoring == "softmax" else sigmoid(logit)


def _group_score(x: Buffer, start: Expr, width: int, kind: str) -> Expr:
    """Sum of the two largest ("top2") or the largest of x[start : start + width]."""
    best = local(2)
    store(best, 0, f32(LOWEST))
    store(best, 1, f32(LOWEST))
    with T.serial(0, width) as i:
        value = T.bind(x[start + i])
        store(best, 1, T.max(best[1], T.min(best[0], value)))
        store(best, 0, T.max(best[0], value))
    return T.bind(best[0] + best[1] if kind == "top2" else best[0])


def _pick(x: Buffer, n: int, thread: Expr, runs: Runs) -> Expr:
    """Index of the largest of shared x[0 : n], the lower one of equals; it is taken out. Every thread gets it. runs: of
    pairs of float32 and int32."""
    best, at = local(1), local(1, "int32")
    store(best, 0, f32(LOWEST))
    store(at, 0, T.int32(n))

    def look(i: Expr) -> None:
        value = T.bind(x[i])
        with T.If(value > best[0]), T.Then():
            store(best, 0, value)
            store(at, 0, i)

    spread(n, thread, look)
    _, index = runs.of_all((best[0], at[0]), larger, n)
    found = T.bind(T.min(index, n - 1))
    with T.If(thread == 0), T.Then():
        store(x, found, f32(LOWEST))
    barrier()
    return found
