"""From a language model to one that scores sequences: the same body, with a head of one number in place of the tokens'.

In the hub's format it is what `transformers` loads by `AutoModelForSequenceClassification`, with one label.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from danlu.architecture.bridge import Bridged
from danlu.architecture.bridge_library import first_line, quiet_transformers
from danlu.architecture.bridge_reading import body_of, text_config
from danlu.contracts import SequenceModel
from danlu.errors import UnsupportedError

_SPREAD = 0.02
"""Standard deviation of the head's initial weights, where a config names none."""


def as_scorer(model: SequenceModel, seed: int) -> SequenceModel:
    """The model with a head that scores, its weights drawn as `transformers` draws them; one that scores as it is.

    Args:
        model: on the host; its weights are the result's.
        seed: of the head.

    Raises:
        UnsupportedError: when `transformers` has no such class for a model that is carried over from there.
    """
    if model.config.scores:
        return model
    return _bridged(model, seed) if isinstance(model, Bridged) else _own(model, seed)


def _own(model: SequenceModel, seed: int) -> SequenceModel:
    config = model.config.model_copy(update={"num_labels": 1})
    scorer: SequenceModel = config.build()
    config.initialize(scorer, seed)
    wanted = {name for name, _ in scorer.named_parameters()}
    kept = {name: parameter for name, parameter in model.named_parameters() if name in wanted}
    scorer.load_state_dict(kept, strict=False)
    scorer.notes = model.notes
    return scorer


def _bridged(model: Bridged, seed: int) -> Bridged:
    inner = model.inner
    config = copy.deepcopy(inner.config)
    config.num_labels = 1
    with quiet_transformers() as transformers:
        try:
            with torch.device("meta"):
                scorer = transformers.AutoModelForSequenceClassification.from_config(config)
        except ValueError as error:
            what = f"transformers cannot score by a model of type '{config.model_type}' ({first_line(error)})"
            raise UnsupportedError(what) from error
    body = body_of(inner)
    width = text_config(inner).hidden_size
    setattr(scorer, scorer.base_model_prefix, body)
    scorer.score = nn.Linear(width, 1, bias=False)
    spread = getattr(text_config(inner), "initializer_range", None) or _SPREAD
    nn.init.normal_(scorer.score.weight, std=spread, generator=torch.Generator().manual_seed(seed))
    made = Bridged(scorer)
    made.notes = model.notes
    return made
