"""Rows of one shape to learn the distribution of: toys, tables, images."""

from danlu.data.arrays.config import ArrayConfig
from danlu.data.arrays.facts import Facts
from danlu.data.arrays.load import load_arrays, load_like
from danlu.data.arrays.rows import Arrays
from danlu.data.arrays.source import ArraySource
from danlu.data.arrays.toys import TOYS, log_density, toy

__all__ = ["TOYS", "ArrayConfig", "ArraySource", "Arrays", "Facts", "load_arrays", "load_like", "log_density", "toy"]
