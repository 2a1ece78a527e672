"""What a run learns from: files, tokens, samples, packs."""

from danlu.data.config import DataConfig
from danlu.data.corpus import Corpus, Sample, Statistics
from danlu.data.packing import pack
from danlu.data.prepare import Data, build_data
from danlu.data.source import CorpusSource
from danlu.data.tokenizer import Tokenizer

__all__ = [
    "Corpus",
    "CorpusSource",
    "Data",
    "DataConfig",
    "Sample",
    "Statistics",
    "Tokenizer",
    "build_data",
    "pack",
]
