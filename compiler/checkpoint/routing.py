"""How tokens choose their experts: the keys of config.json about it, checked against what a member's code has.

Sources: DeepSeek-V2 (arXiv 2405.04434, section 2.2: softmax, groups by their best expert), DeepSeek-V3 (arXiv
2412.19437, section 2.1.2: sigmoid with a bias, groups by their two best), LongCat-Flash (arXiv 2509.01322, section 2.1:
zero experts).
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.checkpoint.errors import ConfigConflictError
from dsv3c.compiler.checkpoint.fields import MAX_WIDTH, ConfigFields
from dsv3c.compiler.checkpoint.members import MEMBERS

SCORING_FUNCS = ("sigmoid", "softmax")
TOPK_METHODS = ("noaux_tc", "greedy", "group_limited_greedy")
MAX_EXPERTS = 2**14  # far above every published model


@dataclass(frozen=True)
class Routing:
    """A config's experts and how tokens choose among them, as ModelConfig has them. No experts: the defaults."""

    moe_intermediate_size: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    score_bias: bool = False
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    zero_expert_num: int = 0

    @classmethod
    def parse(cls, config: ConfigFields, model_type: str) -> Routing:
        """Raises as ConfigFields, UnsupportedConfigError, ConfigConflictError."""
        if MEMBERS[model_type].dense or config.is_null("n_routed_experts"):
            return cls()
        experts = config.integer("n_routed_experts", 0, MAX_EXPERTS)
        if experts == 0:
            return cls()
        scoring, method, norm = _routing_kind(config, model_type)
        n_group, topk_group = 1, 1
        if method != "greedy":
            n_group = config.integer("n_group", 1, MAX_EXPERTS)
            topk_group = config.integer("topk_group", 1, MAX_EXPERTS)
        routing = cls(
            moe_intermediate_size=config.integer("moe_intermediate_size", 1, MAX_WIDTH),
            n_routed_experts=experts,
            n_shared_experts=config.integer("n_shared_experts", 0, MAX_EXPERTS, 0),
            num_experts_per_tok=config.integer("num_experts_per_tok", 1, MAX_EXPERTS),
            n_group=n_group,
            topk_group=topk_group,
            scoring_func=scoring,
            topk_method=method,
            score_bias=_score_bias(config, model_type, method),
            norm_topk_prob=norm,
            routed_scaling_factor=config.number("routed_scaling_factor", 1e-6, 1e6),
            zero_expert_num=_zero_experts(config),
        )
        reason = routing.conflict()
        if reason:
            raise ConfigConflictError(path=config.path, reason=reason)
        return routing

    def conflict(self) -> str:
        """Why the sizes cannot go together, empty when they do."""
        if self.n_routed_experts % self.n_group:
            return f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group {self.n_group}"
        if self.topk_group > self.n_group:
            return f"topk_group {self.topk_group} is above n_group {self.n_group}"
        group = self.n_routed_experts // self.n_group
        if self.topk_method == "noaux_tc" and group < 2:
            return f"groups of {group} expert are too small: noaux_tc ranks a group by its two best"
        if self.zero_expert_num and self.n_group > 1:
            return f"zero_expert_num {self.zero_expert_num} has no place in n_group {self.n_group} groups"
        if self.num_experts_per_tok > group * self.topk_group:
            return (
                f"num_experts_per_tok {self.num_experts_per_tok} is above the {group * self.topk_group} experts"
                f" of {self.topk_group} groups"
            )
        return ""


def _routing_kind(config: ConfigFields, model_type: str) -> tuple[str, str, bool]:
    """(scoring_func, topk_method, norm_topk_prob): each model type has the kinds its published code has."""
    member = MEMBERS[model_type]
    scorings, methods = member.scorings, member.methods
    scoring = config.choice("scoring_func", SCORING_FUNCS, scorings[0])
    if scoring not in scorings:
        raise config.unsupported("scoring_func", f"{model_type} has {scorings[0]}")
    method = config.choice("topk_method", TOPK_METHODS, methods[0])
    if method not in methods:
        raise config.unsupported("topk_method", f"{model_type} has {' or '.join(methods)}")
    own, _ = member.fixed.get("norm_topk_prob", (None, ""))
    return scoring, method, config.boolean("norm_topk_prob", own)


def _score_bias(config: ConfigFields, model_type: str, method: str) -> bool:
    """Whether experts have a bias; `score_bias`, which is no key of config.json, where the checkpoint decides."""
    known = MEMBERS[model_type].score_bias
    return method == "noaux_tc" and (config.boolean("score_bias", True) if known is None else known)


def _zero_experts(config: ConfigFields) -> int:
    """Raises UnsupportedConfigError for those that do not give back what they are given."""
    if config.has("zero_expert_type") and config.values["zero_expert_type"] != "identity":
        raise config.unsupported("zero_expert_type", "known is identity")
    return config.integer("zero_expert_num", 0, MAX_EXPERTS, 0)
