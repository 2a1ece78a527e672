"""The losses of TRL's trainers on a batch that was made by hand, without their loops."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from answers import Judged

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer
    from trl.trainer.reward_trainer import RewardTrainer

PAD = 0
"""What sequences are padded with: no sample may have it."""


class Accelerator:
    """One process."""

    device = torch.device("cpu")

    def gather(self, value: Any) -> Any:
        return value

    gather_for_metrics = gather


def _trainer(kind: type, **fields: Any) -> Any:
    """A trainer that was never begun."""
    made = object.__new__(kind)
    common = {
        "accelerator": Accelerator(),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None, **fields.pop("args", {})),
        "aux_loss_enabled": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "is_encoder_decoder": False,
    }
    for name, value in {**common, **fields}.items():
        object.__setattr__(made, name, value)
    return made


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(list(row)) for row in rows], True, value)


def _sides(samples: Sequence[Judged]) -> list[tuple[list[int], int]]:
    """All chosen, then all rejected sequences, and how long each one's prompt is."""
    return [([*s.prompt.tolist(), *s.answers[side].tolist()], len(s.prompt)) for side in (0, 1) for s in samples]


class Fused(torch.nn.Module):
    """A model as the newer trainers ask it; their own head goes through float32, this one does not."""

    is_gradient_checkpointing = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> Any:
        assert fused_lm_head
        logits, wanted = self.model(**inputs).logits[:, :-1], labels[:, 1:]
        log_probs = logits.log_softmax(-1)
        each = log_probs.gather(-1, wanted.clamp(min=0)[..., None]).squeeze(-1)
        return SimpleNamespace(
            log_probs=each * (wanted >= 0),
            entropy=-(log_probs.exp() * log_probs).sum(-1),
            mean_logits=logits.mean(-1),
            is_top1=logits.argmax(-1) == wanted,
        )


def dpo(policy: Any, reference: Any, samples: Sequence[Judged], loss_types: Sequence[str], **fields: Any) -> Any:
    """The loss of DPOTrainer, and its metrics."""
    sides = _sides(samples)
    masks = [[0] * prompt + [1] * (len(ids) - prompt) for ids, prompt in sides]
    inputs = {
        "input_ids": _padded([ids for ids, _ in sides], PAD),
        "attention_mask": _padded([[1] * len(ids) for ids, _ in sides], 0),
        "completion_mask": _padded(masks, 0),
    }
    settings = {"label_smoothing": 0.0, "loss_weights": [1.0] * len(loss_types), **fields}
    trainer = _trainer(
        DPOTrainer,
        model=policy,
        ref_model=reference,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        loss_types=list(loss_types),
        **settings,
    )
    loss = DPOTrainer._compute_loss(trainer, policy, inputs, False)
    return loss, trainer._metrics["eval"]


def _concatenated(samples: Sequence[Judged]) -> dict[str, Tensor]:
    batch = {}
    sides, half = _sides(samples), len(samples)
    for name, some in (("chosen", sides[:half]), ("rejected", sides[half:])):
        batch[f"{name}_input_ids"] = _padded([ids for ids, _ in some], PAD)
        batch[f"{name}_attention_mask"] = _padded([[1] * len(ids) for ids, _ in some], 0)
        batch[f"{name}_labels"] = _padded([[-100] * prompt + ids[prompt:] for ids, prompt in some], -100)
    return batch


def cpo(policy: Any, samples: Sequence[Judged], **fields: Any) -> Any:
    """The loss of CPOTrainer, of which SimPO is a kind."""
    settings = {"label_smoothing": 0.0, "cpo_alpha": 0.0, "simpo_gamma": 0.0, "alpha": 0.0, **fields}
    trainer = _trainer(CPOTrainer, pad_token_id=PAD, **settings)
    return CPOTrainer.get_batch_loss_metrics(trainer, policy, _concatenated(samples), "train")


def orpo(policy: Any, samples: Sequence[Judged], beta: float) -> Any:
    """The loss of ORPOTrainer."""
    trainer = _trainer(ORPOTrainer, padding_value=PAD, beta=beta)
    return ORPOTrainer.get_batch_loss_metrics(trainer, policy, _concatenated(samples), "train")


def kto(policy: Any, reference: Any, samples: Sequence[Judged], **fields: Any) -> Any:
    """The loss of KTOTrainer, each prompt mismatched with the answer to the one before it."""
    rows = [
        {
            "prompt_ids": sample.prompt.tolist(),
            "completion_ids": sample.answers[0].tolist(),
            "KL_completion_ids": samples[number - 1].answers[0].tolist(),
            "label": bool(sample.values["desirable"][0]),
        }
        for number, sample in enumerate(samples)
    ]
    inputs = DataCollatorForUnpairedPreference(pad_token_id=PAD)(rows)
    trainer = _trainer(
        KTOTrainer,
        model=policy,
        ref_model=reference,
        calculate_KL=True,
        precompute_ref_logps=False,
        loss_type="kto",
        **fields,
    )
    return KTOTrainer._compute_loss(trainer, policy, inputs, False), trainer._metrics["eval"]


def reward(scorer: Any, samples: Sequence[Judged], margins: Sequence[float] | None, centring: float | None) -> Any:
    """The loss of RewardTrainer."""
    sides = _sides(samples)
    inputs = {
        "input_ids": _padded([ids for ids, _ in sides], PAD),
        "attention_mask": _padded([[1] * len(ids) for ids, _ in sides], 0),
    }
    if margins is not None:
        inputs["margin"] = torch.tensor(margins, dtype=torch.float64)
    trainer = _trainer(RewardTrainer, model=scorer, args={"center_rewards_coefficient": centring})
    return RewardTrainer.compute_loss(trainer, scorer, inputs), trainer._metrics["eval"]
