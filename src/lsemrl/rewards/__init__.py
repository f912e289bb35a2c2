"""What a completion is worth: named parts, kept apart, and how they become one number."""

from lsemrl.rewards.base import Reward, RewardMix
from lsemrl.rewards.language import LanguageConsistency
from lsemrl.rewards.lexical import Bleu, Chrf
from lsemrl.rewards.semantic import SemanticSimilarity

__all__ = ["Bleu", "Chrf", "LanguageConsistency", "Reward", "RewardMix", "SemanticSimilarity"]
