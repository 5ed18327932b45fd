"""The DeepSeek-V3 architecture, written once.

`op` is a namespace of operations and `weight` gives a parameter by its checkpoint name: with numpy arrays and
`ops.Evaluator` the functions compute (the oracle), with IR values and `ops.Recorder` they record the graph. Everything
that differs within the family is a field of the config.

One step is a ragged batch over a paged cache of latent rows: T tokens of any number of sequences, each with its
position and its row of the page table. The caches that `frontend/caches.py` lists have a row for each token; that of a
layer's latents is rms_norm(kv latent) [kv_lora_rank] then the rotated shared key [qk_rope_head_dim].

Between the layers x is kept divided by residual_scale: then attention and feed-forward are added as they are, and the
norms undo it, which show a scale in their epsilon alone.

Sources: DeepSeek-V2 (arXiv 2405.04434, section 2.1: MLA), DeepSeek-V3 (arXiv 2412.19437, sections 2.1.2 and 2.2:
routing and multi-token prediction), DeepSeek-V3.2-Exp (the indexer of its sparse attention), YaRN (arXiv 2309.00071).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.indexer import FULL, SHARED
from dsv3c.compiler.core.caches import cache_name
from dsv3c.compiler.frontend.caches import INDEX

Tensor = Any  # an ir.Value or a numpy array, as `op` takes them
Weights = Callable[[str], Tensor]
Caches = Mapping[str, Tensor]  # by name; [N, …] each

MASKED = float("-inf")


class StepInputs(NamedTuple):
    """The inputs of one step: tokens, positions, sequence [T]; page_table [S, P]; rows [R]: where logits are wanted."""

    tokens: Tensor
    positions: Tensor
    sequence: Tensor
    page_table: Tensor
    rows: Tensor
    page_size: int

    @property
    def paging(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.positions, self.sequence, self.page_table


class Rotary(NamedTuple):
    """cos and sin of the step's rotary angles, each [T, qk_rope_head_dim / 2]."""

    cos: Tensor
    sin: Tensor


class Attended(NamedTuple):
    y: Tensor  # [T, hidden_size]
    caches: dict[str, Tensor]  # those of the layer, with the new rows
    visible: Tensor  # bool [T, rows of the context]: what each token attended to


class LayerOutput(NamedTuple):
    x: Tensor  # [T, hidden_size]
    caches: dict[str, Tensor]  # those of the layer, with the new rows
    visible: Tensor  # as of Attended
    experts: Tensor | None  # [T, num_experts_per_tok], ids of those that a token visits; None in a layer without
    later: Tensor | None = None  # [T, hidden_size]: what is added to x behind the next layer


class StepOutput(NamedTuple):
    logits: Tensor  # [R, vocab_size]
    hidden: Tensor  # [T, hidden_size], after the final norm: what the MTP layer reads
    caches: dict[str, Tensor]
    experts: dict[int, Tensor]  # of each layer that has some, as in LayerOutput


def forward(op: Any, config: ModelConfig, weight: Weights, step: StepInputs, caches: Caches) -> StepOutput:
    """One step of the main model."""
    rotary = rotary_angles(op, config, step)
    embedding = scaled(op, weight("model.embed_tokens.weight"), config.embedding_scale / config.residual_scale)
    x = op.take(embedding, step.tokens)
    written: dict[str, Tensor] = {}
    chosen, visible = {}, None
    later: Tensor | None = None
    for layer in range(config.num_hidden_layers):
        before = later
        x, of_layer, visible, experts, later = decoder_layer(
            op, config, weight, layer, x, step, rotary, caches, visible
        )
        x = x if before is None else op.add(x, before)
        written |= of_layer
        if experts is not None:
            chosen[layer] = experts
    hidden = rms_norm(op, x, weight("model.norm.weight"), config.stream_norm_eps)
    return StepOutput(lm_head(op, config, weight, hidden, step), hidden, written, chosen)


def forward_mtp(
    op: Any, config: ModelConfig, weight: Weights, depth: int, step: StepInputs, hidden: Tensor, caches: Caches
) -> StepOutput:
    """One step of multi-token prediction module `depth`: `step.tokens` are the tokens after those of `hidden`.

    hidden: [T, hidden_size] of the main model (or of the module before), after its final norm.
    """
    layer = config.num_hidden_layers + depth
    prefix = f"model.layers.{layer}"
    own_embedding = weight_or_none(weight, f"{prefix}.embed_tokens.weight")
    embedding = weight("model.embed_tokens.weight") if own_embedding is None else own_embedding
    token = rms_norm(op, op.take(embedding, step.tokens), weight(f"{prefix}.enorm.weight"), config.rms_norm_eps)
    before = rms_norm(op, hidden, weight(f"{prefix}.hnorm.weight"), config.rms_norm_eps)
    x = op.linear(op.concat(token, before, axis=-1), weight(f"{prefix}.eh_proj.weight"))
    rotary = rotary_angles(op, config, step)
    x, written, _, experts, _ = decoder_layer(op, config, weight, layer, x, step, rotary, caches, None)
    x = rms_norm(op, x, weight(f"{prefix}.shared_head.norm.weight"), config.rms_norm_eps)
    own_head = weight_or_none(weight, f"{prefix}.shared_head.head.weight")
    chosen = {} if experts is None else {layer: experts}
    return StepOutput(lm_head(op, config, weight, x, step, own_head), x, written, chosen)


def weight_or_none(weight: Weights, name: str) -> Tensor | None:
    """A parameter that a checkpoint may lack."""
    try:
        return weight(name)
    except KeyError:
        return None


def lm_head(
    op: Any, config: ModelConfig, weight: Weights, hidden: Tensor, step: StepInputs, own_head: Tensor | None = None
) -> Tensor:
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    head = scaled(op, weight(name) if own_head is None else own_head, config.logits_scale)
    return op.linear(op.take(hidden, step.rows), head)


def scaled(op: Any, weight: Tensor, factor: float) -> Tensor:
    """The weight times a number, when it is read."""
    return weight if factor == 1 else op.mul(weight, op.const(factor))


def decoder_layer(
    op: Any,
    config: ModelConfig,
    weight: Weights,
    layer: int,
    x: Tensor,
    step: StepInputs,
    rotary: Rotary,
    caches: Caches,
    visible: Tensor | None,
) -> LayerOutput:
    """visible: what tokens attended to in the layer before."""
    prefix = f"model.layers.{layer}"
    h = rms_norm(op, x, weight(f"{prefix}.input_layernorm.weight"), config.stream_norm_eps)
    attended, written, visible = attention(op, config, weight, layer, h, step, rotary, caches, visible)
    x = op.add(x, attended)
    h = rms_norm(op, x, weight(f"{prefix}.post_attention_layernorm.weight"), config.stream_norm_eps)
    if not config.is_moe(layer):
        return LayerOutput(op.add(x, mlp(op, weight, f"{prefix}.mlp", h)), written, visible, None)
    mixed, experts = moe(op, config, weight, f"{prefix}.mlp", h)
    if config.post_mlp_norm:
        mixed = rms_norm(op, mixed, weight(f"{prefix}.post_mlp_layernorm.weight"), config.rms_norm_eps)
    if not config.has_mlp(layer):
        return LayerOutput(op.add(x, mixed), written, visible, experts)
    return LayerOutput(op.add(x, mlp(op, weight, f"{prefix}.mlp", h)), written, visible, experts, mixed)


def rms_norm(op: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    variance = op.mean(op.mul(x, x), axis=-1, keepdims=True)
    return op.mul(op.mul(x, op.rsqrt(op.add(variance, op.const(eps)))), weight)


def rotary_angles(op: Any, config: ModelConfig, step: StepInputs) -> Rotary:
    positions = op.reshape(op.cast(step.positions, dtype="f32"), shape=("T", 1))
    angles = op.mul(positions, op.const(config.rope_inv_freq()))
    scale = op.const(config.rope_attention_factor)
    return Rotary(op.mul(op.cos(angles), scale), op.mul(op.sin(angles), scale))


def rope(op: Any, config: ModelConfig, x: Tensor, rotary: Rotary, heads: int, interleave: bool) -> Tensor:
    """Rotate x [T, heads, qk_rope_head_dim]. The result holds first members, then second members of the pairs."""
    size = config.qk_rope_head_dim
    half = size // 2
    cos, sin = (op.reshape(part, shape=("T", 1, half)) for part in rotary)
    x = op.reshape(x, shape=("T", heads, size))
    if interleave:
        first, second = (op.slice(x, axis=-1, start=start, stop=size, step=2) for start in (0, 1))
    else:
        first, second = (op.slice(x, axis=-1, start=start, stop=start + half) for start in (0, half))
    rotated_first = op.sub(op.mul(first, cos), op.mul(second, sin))
    rotated_second = op.add(op.mul(second, cos), op.mul(first, sin))
    return op.concat(rotated_first, rotated_second, axis=-1)


def attention(
    op: Any,
    config: ModelConfig,
    weight: Weights,
    layer: int,
    x: Tensor,
    step: StepInputs,
    rotary: Rotary,
    caches: Caches,
    visible: Tensor | None,
) -> Attended:
    """Multi-head latent attention of x [T, hidden_size]. visible: what tokens attended to in the layer before."""
    prefix = f"model.layers.{layer}.self_attn"
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    nope, rope_dim, v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    interleave = config.rope_interleave

    if config.q_lora_rank is None:
        q = at_positions(op, config, op.linear(x, weight(f"{prefix}.q_proj.weight")), step)
    else:
        q_a = op.linear(x, weight(f"{prefix}.q_a_proj.weight"))
        q_norm = scaled(op, weight(f"{prefix}.q_a_layernorm.weight"), config.q_latent_scale)
        q_a = rms_norm(op, q_a, q_norm, config.latent_norm_eps)
        q = op.linear(at_positions(op, config, q_a, step), weight(f"{prefix}.q_b_proj.weight"))
    written = {}
    if config.indexer_type(layer) == FULL:
        keys = cache_name(layer, INDEX)
        visible, written[keys] = choose(op, config, weight, prefix, x, q_a, step, rotary, caches[keys])
    elif config.indexer_type(layer) != SHARED:
        visible = op.context_mask(*step.paging, page_size=step.page_size)
    q = op.reshape(q, shape=("T", heads, nope + rope_dim))
    q_nope = op.slice(q, axis=-1, start=0, stop=nope)
    q_pe = rope(op, config, op.slice(q, axis=-1, start=nope, stop=nope + rope_dim), rotary, heads, interleave)

    kv_a = op.linear(x, weight(f"{prefix}.kv_a_proj_with_mqa.weight"))
    latent = op.slice(kv_a, axis=-1, start=0, stop=rank)
    kv_norm = scaled(op, weight(f"{prefix}.kv_a_layernorm.weight"), config.kv_latent_scale)
    latent = rms_norm(op, latent, kv_norm, config.latent_norm_eps)
    k_pe = rope(op, config, op.slice(kv_a, axis=-1, start=rank, stop=rank + rope_dim), rotary, 1, interleave)
    row = op.concat(latent, op.reshape(k_pe, shape=("T", rope_dim)), axis=-1)
    latents = cache_name(layer)
    written[latents] = op.scatter_rows(caches[latents], op.token_slots(*step.paging, page_size=step.page_size), row)

    context = op.take(written[latents], op.context_slots(step.page_table, page_size=step.page_size))
    kv = op.linear(op.slice(context, axis=-1, start=0, stop=rank), weight(f"{prefix}.kv_b_proj.weight"))
    kv = op.reshape(kv, shape=(context.shape[0], heads, nope + v_dim))
    k_nope = op.transpose(op.slice(kv, axis=-1, start=0, stop=nope), axes=(1, 2, 0))
    value = op.transpose(op.slice(kv, axis=-1, start=nope, stop=nope + v_dim), axes=(1, 0, 2))
    k_pe = op.transpose(op.slice(context, axis=-1, start=rank, stop=rank + rope_dim), axes=(1, 0))

    score_nope = op.matmul(op.transpose(q_nope, axes=(1, 0, 2)), k_nope)
    score_pe = op.matmul(op.transpose(q_pe, axes=(1, 0, 2)), k_pe)
    score = op.mul(op.add(score_nope, score_pe), op.const(config.softmax_scale))
    probability = op.softmax(op.where(visible, score, op.const(MASKED)))
    attended = op.transpose(op.matmul(probability, value), axes=(1, 0, 2))
    attended = op.reshape(attended, shape=("T", heads * v_dim))
    return Attended(op.linear(attended, weight(f"{prefix}.o_proj.weight")), written, visible)


def choose(
    op: Any,
    config: ModelConfig,
    weight: Weights,
    prefix: str,
    x: Tensor,
    q_latent: Tensor,
    step: StepInputs,
    rotary: Rotary,
    cache: Tensor,
) -> tuple[Tensor, Tensor]:
    """The positions that an indexer chooses, as a mask bool [T, rows of the context], and its keys with the new rows.

    x [T, hidden_size], q_latent [T, q_lora_rank]. Scores have no scale of the softmax and of the number of heads, which
    would change no choice.
    """
    prefix = f"{prefix}.indexer"
    heads, size = config.index_n_heads, config.index_head_dim
    q = op.reshape(op.linear(q_latent, weight(f"{prefix}.wq_b.weight")), shape=("T", heads, size))
    q = rope_first(op, config, q, rotary, config.index_interleave)
    k = op.linear(x, weight(f"{prefix}.wk.weight"))
    norm = weight(f"{prefix}.k_norm.weight"), weight(f"{prefix}.k_norm.bias")
    k = op.reshape(layer_norm(op, k, *norm, config.index_norm_eps), shape=("T", 1, size))
    k = op.reshape(rope_first(op, config, k, rotary, config.index_interleave), shape=("T", size))
    cache = op.scatter_rows(cache, op.token_slots(*step.paging, page_size=step.page_size), k)

    keys = op.take(cache, op.context_slots(step.page_table, page_size=step.page_size))
    score = op.relu(op.matmul(op.transpose(q, axes=(1, 0, 2)), op.transpose(keys, axes=(1, 0))))
    weights = op.transpose(op.linear(x, weight(f"{prefix}.weights_proj.weight")), axes=(1, 0))
    score = op.sum(op.mul(score, op.reshape(weights, shape=(heads, "T", 1))), axis=0, keepdims=False)
    visible = op.context_mask(*step.paging, page_size=step.page_size)
    return op.top_k_mask(op.where(visible, score, op.const(MASKED)), k=config.index_topk), cache


def rope_first(op: Any, config: ModelConfig, x: Tensor, rotary: Rotary, interleave: bool) -> Tensor:
    """x [T, heads, size] with its first qk_rope_head_dim columns rotated."""
    _, heads, size = x.shape
    rope_dim = config.qk_rope_head_dim
    turned = rope(op, config, op.slice(x, axis=-1, start=0, stop=rope_dim), rotary, heads, interleave)
    if rope_dim == size:
        return turned
    return op.concat(turned, op.slice(x, axis=-1, start=rope_dim, stop=size), axis=-1)


def layer_norm(op: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation (arXiv 1607.06450): the RMSNorm of what is left of x without its mean, and a bias."""
    centred = op.sub(x, op.mean(x, axis=-1, keepdims=True))
    return op.add(rms_norm(op, centred, weight, eps), bias)


def at_positions(op: Any, config: ModelConfig, q: Tensor, step: StepInputs) -> Tensor:
    """Queries q [T, D], or what they are a linear map of, times the factor of their position."""
    if not config.query_scales:
        return q
    factors = op.const(np.array(config.query_scales, np.float32))
    return op.scale_rows(q, factors, step.positions, block=config.query_scale_block)


def silu(op: Any, x: Tensor) -> Tensor:
    return op.mul(x, op.sigmoid(x))


def mlp(op: Any, weight: Weights, prefix: str, x: Tensor) -> Tensor:
    gate = op.linear(x, weight(f"{prefix}.gate_proj.weight"))
    up = op.linear(x, weight(f"{prefix}.up_proj.weight"))
    return op.linear(op.mul(silu(op, gate), up), weight(f"{prefix}.down_proj.weight"))


def moe(op: Any, config: ModelConfig, weight: Weights, prefix: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every expert on every token, mixed by weights that are zero for experts not chosen: exact, and dense. Also the
    ids of those that are chosen.

    Weights named with `*` are stacked over the experts: [E, moe_intermediate_size, hidden_size]. Ids from E on are
    those of zero experts, which give back x.
    """
    ids, weights = route(op, config, weight, prefix, x)
    experts, choices = config.n_routed_experts, config.n_routed_experts + config.zero_expert_num
    chosen = op.put_along(ids, weights, size=choices)
    mix = op.slice(chosen, axis=-1, start=0, stop=experts) if choices > experts else chosen
    gate = op.linear(x, weight(f"{prefix}.experts.*.gate_proj.weight"))
    up = op.linear(x, weight(f"{prefix}.experts.*.up_proj.weight"))
    out = op.linear(op.mul(silu(op, gate), up), weight(f"{prefix}.experts.*.down_proj.weight"))
    mix = op.reshape(op.transpose(mix, axes=(1, 0)), shape=(experts, "T", 1))
    routed = op.sum(op.mul(out, mix), axis=0, keepdims=False)
    if choices > experts:
        share = op.sum(op.slice(chosen, axis=-1, start=experts, stop=choices), axis=-1, keepdims=True)
        routed = op.add(routed, op.mul(x, share))
    if config.n_shared_experts == 0:
        return routed, ids
    return op.add(routed, mlp(op, weight, f"{prefix}.shared_experts", x)), ids


def route(op: Any, config: ModelConfig, weight: Weights, prefix: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Expert ids and mixing weights, each [T, num_experts_per_tok]."""
    experts, groups = config.n_routed_experts, config.n_group
    logits = op.linear(x, weight(f"{prefix}.gate.weight"))
    scores = op.sigmoid(logits) if config.scoring_func == "sigmoid" else op.softmax(logits)
    choice = op.add(scores, weight(f"{prefix}.gate.e_score_correction_bias")) if config.score_bias else scores
    if groups > 1 and config.topk_method != "greedy":
        grouped = op.reshape(choice, shape=("T", groups, experts // groups))
        if config.topk_method == "noaux_tc":
            best = op.sum(op.take_along(grouped, op.top_k(grouped, k=2)), axis=-1, keepdims=False)
        else:
            best = op.max(grouped, axis=-1, keepdims=False)
        kept = op.put_along(op.top_k(best, k=config.topk_group), op.const(1.0), size=groups)
        kept = op.cast(op.reshape(kept, shape=("T", groups, 1)), dtype="bool")
        choice = op.reshape(op.where(kept, grouped, op.const(MASKED)), shape=("T", experts))
    ids = op.top_k(choice, k=config.num_experts_per_tok)
    weights = op.take_along(scores, ids)
    if config.norm_topk_prob:
        total = op.sum(weights, axis=-1, keepdims=True)
        weights = op.div(weights, op.add(total, op.const(1e-20)))
    return ids, op.mul(weights, op.const(config.routed_scaling_factor))
