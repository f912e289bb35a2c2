"""What a completion is worth: named parts, kept apart, and how they become one number."""

from lsemrl.rewards.base import Reward, RewardMix
from lsemrl.rewards.coverage import Coverage
from lsemrl.rewards.guards import Broken, CopyOfSource, Length, Repetition
from lsemrl.rewards.language import LanguageConsistency
from lsemrl.rewards.lexical import Bleu, Chrf
from lsemrl.rewards.semantic import SemanticSimilarity

__all__ = [
    "Bleu",
    "Broken",
    "Chrf",
    "CopyOfSource",
    "Coverage",
    "LanguageConsistency",
    "Length",
    "Repetition",
    "Reward",
    "RewardMix",
    "SemanticSimilarity",
]
