"""What a run learns from: files, tokens, samples, packs."""

from danlu.data.collection import Collection
from danlu.data.config import DataConfig, Part
from danlu.data.corpus import Corpus
from danlu.data.cutting import Rules
from danlu.data.mixture import Mixture, Portion
from danlu.data.packing import deal, pack
from danlu.data.prepare import Data, Documents, build_data, build_encoder, open_documents
from danlu.data.samples import Answers, Sample
from danlu.data.source import DataSource
from danlu.data.statistics import Statistics
from danlu.data.stream import Stream
from danlu.data.tokenizer import Tokenizer

__all__ = [
    "Answers",
    "Collection",
    "Corpus",
    "Data",
    "DataConfig",
    "DataSource",
    "Documents",
    "Mixture",
    "Part",
    "Portion",
    "Rules",
    "Sample",
    "Statistics",
    "Stream",
    "Tokenizer",
    "build_data",
    "build_encoder",
    "deal",
    "open_documents",
    "pack",
]
