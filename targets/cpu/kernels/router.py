"""Routing: which experts a token visits (router), with what weights (router_weights, expert_weights), in what order
(expert_order); and those that give back what they are given (identity_experts)."""

from __future__ import annotations

from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import CONTROL, view_of
from dsv3c.targets.calls.router import (
    ExpertOrder,
    ExpertWeights,
    IdentityExperts,
    Router,
    RouterWeights,
    expert_weights_operands,
    identity_experts_operands,
    order_size,
    router_weights_operands,
)
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.frame import Buffer, Operand, PrimFunc, local, prim_func, rows_loop
from dsv3c.targets.cpu.kernels.vector import Reduction, add, columns, exp, f32, load, sigmoid, store

Expr = Any

_TAKEN = float("-inf")  # what a picked or excluded score becomes; real scores are finite


def router_operands(spec: Router) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    bias = (Operand("bias", "f32", spec.experts),) if spec.has_bias else ()
    return (
        CONTROL,
        Operand("logits", "f32", m * spec.experts),
        *bias,
        Operand("y", "i32", m * spec.top_k),
        Operand("scratch", "f32", m * (spec.experts + spec.n_group)),
    )


def expert_order_operands(spec: ExpertOrder) -> tuple[Operand, ...]:
    m = spec.rows.maximum
    return (
        CONTROL,
        Operand("ids", "i32", m * spec.top_k),
        Operand("y", "i32", order_size(spec)),
        Operand("scratch", "i32", spec.total),
    )


def build_router(spec: Router, level: IsaLevel) -> PrimFunc:
    width = spec.experts // spec.n_group

    def body(buffers: dict[str, Buffer]) -> None:
        logits, choice, y = buffers["logits"], buffers["scratch"], buffers["y"]

        def row(m: Expr) -> None:
            scores = T.bind(m * (spec.experts + spec.n_group))
            groups = T.bind(scores + spec.experts)
            _scores(logits, m * spec.experts, choice, scores, spec.experts, spec.scoring)
            if spec.has_bias:
                _add_bias(choice, scores, buffers["bias"], spec.experts)
            if spec.n_group > 1:
                with T.serial(0, spec.n_group) as g:
                    best = _group_score(choice, T.bind(scores + g * width), width, spec.group_score)
                    store(choice, groups + g, best, 1)
                with T.serial(0, spec.topk_group):
                    _pick(choice, groups, spec.n_group)
                with T.serial(0, spec.n_group) as g:
                    # A group that was picked holds _TAKEN now; the others lose their experts.
                    with T.If(choice[groups + g] > f32(_TAKEN)), T.Then():
                        columns(
                            width, lambda at, lanes: store(choice, scores + g * width + at, f32(_TAKEN, lanes), lanes)
                        )
            with T.serial(0, spec.top_k) as j:
                store(y, m * spec.top_k + j, _pick(choice, scores, spec.experts), 1)

        rows_loop(buffers["control"], spec.rows, spec.experts * (spec.top_k + 8), row)

    return prim_func(router_operands(spec), body)


def build_router_weights(spec: RouterWeights, level: IsaLevel) -> PrimFunc:
    def body(buffers: dict[str, Buffer]) -> None:
        logits, ids, y = buffers["logits"], buffers["ids"], buffers["y"]

        def row(m: Expr) -> None:
            start, first = T.bind(m * spec.experts), T.bind(m * spec.top_k)
            top = total = f32(0)
            if spec.scoring == "softmax":
                top = _maximum(logits, start, spec.experts)
                total = _sum_of_exp(logits, start, spec.experts, top)
            factor = local("f32", 1)
            store(factor, 0, f32(1e-20), 1)
            with T.serial(0, spec.top_k) as j:
                logit = T.bind(logits[start + ids[first + j]])
                score = T.bind(exp(logit - top, 1) / total if spec.scoring == "softmax" else sigmoid(logit, 1))
                store(y, first + j, score, 1)
                store(factor, 0, factor[0] + score, 1)
            divisor = factor[0] if spec.norm_topk_prob else f32(1)
            scale = T.bind(f32(spec.scale) / divisor)
            with T.serial(0, spec.top_k) as j:
                store(y, first + j, y[first + j] * scale, 1)

        rows_loop(buffers["control"], spec.rows, spec.experts * 8, row)

    return prim_func(router_weights_operands(spec), body)


def build_expert_weights(spec: ExpertWeights, level: IsaLevel) -> PrimFunc:
    def body(buffers: dict[str, Buffer]) -> None:
        ids, weights, y = buffers["ids"], buffers["weights"], buffers["y"]

        def row(m: Expr) -> None:
            with T.serial(0, spec.top_k) as j:
                at = T.bind(m * spec.top_k + j)
                store(y, at, T.Select(ids[at] < spec.experts, weights[at], f32(0)), 1)

        rows_loop(buffers["control"], spec.rows, spec.top_k, row)

    return prim_func(expert_weights_operands(spec), body)


def build_identity_experts(spec: IdentityExperts, level: IsaLevel) -> PrimFunc:
    view = view_of(spec.view, 1, spec.d)

    def body(buffers: dict[str, Buffer]) -> None:
        x, ids, weights, y = (buffers[role] for role in ("x", "ids", "weights", "y"))

        def row(m: Expr) -> None:
            start, total = T.bind(view.start(m)), local("f32", 1)
            store(total, 0, f32(0), 1)
            with T.serial(0, spec.top_k) as j:
                at = T.bind(m * spec.top_k + j)
                store(total, 0, total[0] + T.Select(ids[at] < spec.experts, f32(0), weights[at]), 1)
            factor = T.bind(total[0])

            def column(at: Expr, lanes: int) -> None:
                store(y, m * spec.d + at, load(x, start + at, lanes) * splat(factor, lanes), lanes)

            columns(spec.d, column)

        rows_loop(buffers["control"], spec.rows, spec.d, row)

    return prim_func(identity_experts_operands(spec), body)


def build_expert_order(spec: ExpertOrder, level: IsaLevel) -> PrimFunc:
    """A counting sort, on one thread."""
    starts, pairs = 1 + spec.total, 2 + 2 * spec.total

    def body(buffers: dict[str, Buffer]) -> None:
        ids, y, place = buffers["ids"], buffers["y"], buffers["scratch"]
        m = T.bind(buffers["control"][spec.rows.index] * spec.rows.multiplier)
        with T.serial(0, spec.total) as e:
            store(place, e, T.if_then_else(e < spec.experts, 0, m), 1)
        with T.serial(0, m * spec.top_k) as i:
            expert = T.bind(ids[i])
            with T.If(expert < spec.experts), T.Then():
                store(place, expert, place[expert] + 1, 1)
        active, used = local("i32", 1), local("i32", 1)
        store(active, 0, T.int32(0), 1)
        store(used, 0, T.int32(0), 1)
        with T.serial(0, spec.total) as e:
            count = T.bind(place[e])
            with T.If(count > 0), T.Then():
                store(y, 1 + active[0], e, 1)
                store(y, starts + active[0], used[0], 1)
                store(place, e, used[0], 1)
                store(used, 0, used[0] + count, 1)
                store(active, 0, active[0] + 1, 1)
        store(y, 0, active[0], 1)
        store(y, starts + active[0], used[0], 1)
        with T.serial(0, m) as row, T.serial(0, spec.per_token) as j:
            # The index stays inside ids for shared experts too, where its value is not used.
            routed = ids[row * spec.top_k + T.min(j, spec.top_k - 1)]
            expert = T.bind(T.if_then_else(j < spec.top_k, routed, spec.experts + j - spec.top_k))
            with T.If(T.Or(expert < spec.experts, j >= spec.top_k)), T.Then():
                at = T.bind(place[expert])
                store(y, pairs + at, row * spec.per_token + j, 1)
                store(place, expert, at + 1, 1)

    return prim_func(expert_order_operands(spec), body)


def _scores(logits: Buffer, source: Expr, out: Buffer, target: Expr, n: int, scoring: str) -> None:
    """out[target : target + n] = sigmoid or softmax of logits[source : source + n]."""
    if scoring == "sigmoid":
        columns(n, lambda at, lanes: store(out, target + at, sigmoid(load(logits, source + at, lanes), lanes), lanes))
        return
    top = _maximum(logits, source, n)
    total = _sum_of_exp(logits, source, n, top)

    def score(at: Expr, lanes: int) -> None:
        value = exp(load(logits, source + at, lanes) - splat(top, lanes), lanes) / splat(total, lanes)
        store(out, target + at, value, lanes)

    columns(n, score)


def _maximum(x: Buffer, start: Expr, n: int) -> Expr:
    largest = Reduction(T.max, _TAKEN)
    columns(n, lambda at, lanes: largest.update(load(x, start + at, lanes), lanes))
    return largest.result()


def _sum_of_exp(x: Buffer, start: Expr, n: int, top: Expr) -> Expr:
    total = Reduction(add, 0.0)
    columns(n, lambda at, lanes: total.update(exp(load(x, start + at, lanes) - splat(top, lanes), lanes), lanes))
    return total.result()


def _add_bias(x: Buffer, start: Expr, bias: Buffer, n: int) -> None:
    columns(n, lambda at, lanes: store(x, start + at, load(x, start + at, lanes) + load(bias, at, lanes), lanes))


def _group_score(x: Buffer, start: Expr, width: int, kind: str) -> Expr:
    """Sum of the two largest ("top2") or the largest of x[start : start + width]."""
    best, second = local("f32", 1), local("f32", 1)
    store(best, 0, f32(_TAKEN), 1)
    store(second, 0, f32(_TAKEN), 1)
    with T.serial(0, width) as i:
        value = T.bind(x[start + i])
        store(second, 0, T.max(second[0], T.min(best[0], value)), 1)
        store(best, 0, T.max(best[0], value), 1)
    return T.bind(best[0] + second[0] if kind == "top2" else best[0])


def _pick(x: Buffer, start: Expr, n: int) -> Expr:
    """Index of the largest of x[start : start + n], the lower one of equals; it is taken out."""
    best, index = local("f32", 1), local("i32", 1)
    store(best, 0, f32(_TAKEN), 1)
    store(index, 0, T.int32(0), 1)
    with T.serial(0, n) as i:
        value = T.bind(x[start + i])
        with T.If(value > best[0]), T.Then():
            store(best, 0, value, 1)
            store(index, 0, i, 1)
    store(x, start + index[0], f32(_TAKEN), 1)
    return T.bind(index[0])
