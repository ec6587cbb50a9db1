"""Token importance: read it from a model (attention), turn it into a ranking, compare two rankings."""

from rskd.importance.attention import Observation, TokenImportance, observe_attention
from rskd.importance.ranking import Agreement, TokenRanking, agreement, align, rank_tokens, token_mask
from rskd.importance.sites import attention_sites

__all__ = [
    "Agreement",
    "Observation",
    "TokenImportance",
    "TokenRanking",
    "agreement",
    "align",
    "attention_sites",
    "observe_attention",
    "rank_tokens",
    "token_mask",
]
