"""Token importance: read it from a model (attention), turn it into a ranking, compare two rankings."""

from rskd.importance.attention import DEFINITIONS, Observation, TokenImportance, observe_attention
from rskd.importance.features import TokenFeatures, feature_stages, gradient_importance, observe_features
from rskd.importance.ranking import Agreement, TokenRanking, agreement, align, rank_tokens, token_mask
from rskd.importance.sites import attention_sites

__all__ = [
    "DEFINITIONS",
    "Agreement",
    "Observation",
    "TokenFeatures",
    "TokenImportance",
    "TokenRanking",
    "agreement",
    "align",
    "attention_sites",
    "feature_stages",
    "gradient_importance",
    "observe_attention",
    "observe_features",
    "rank_tokens",
    "token_mask",
]
