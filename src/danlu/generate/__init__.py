"""What models write: continuations of many prompts at once, text in and text out."""

from danlu.generate.cache import Cache
from danlu.generate.generator import Continuation, Step, complete, generate
from danlu.generate.language_model import LanguageModel
from danlu.generate.sampling import Sampling

__all__ = ["Cache", "Continuation", "LanguageModel", "Sampling", "Step", "complete", "generate"]
