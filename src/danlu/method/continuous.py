"""What methods share whose rows are noise carried along a field: how it is solved, and what its fields are."""

from __future__ import annotations

from abc import ABC
from typing import Self

from pydantic import Field, model_validator

from danlu.density import DensityMethod
from danlu.parts.solvers import Scheme, Solver
from danlu.parts.trace import Probe, Trace


class ContinuousMethod(DensityMethod, ABC):
    """A distribution whose rows are noise carried along a field."""

    one_step = False
    takes_images = True
    later = frozenset({"solver", "steps", "tolerance", "trace", "probe"})

    solver: Scheme = "dopri5"
    """How the field is followed from noise to rows and back: by dopri5, whose steps fit the tolerance, or in `steps` of
    the same length by euler, midpoint or heun."""
    steps: int = Field(32, ge=1)
    """How many steps, where they are of the same length; one costs euler one evaluation, midpoint and heun two."""
    tolerance: float = Field(1e-5, gt=0, lt=1)
    """The error of one of dopri5's steps, absolutely and relative to a row's numbers; a nat of the log-density counts a
    hundredth."""
    trace: Trace = "exact"
    """How the trace of the field's Jacobian is had: `exact`, which an mlp of two layers has for one product and another
    network for one pass a number of a row; or the estimate of `hutchinson`, for one pass."""
    probe: Probe = "rademacher"
    """What an estimate of the trace is made with, the same for a whole solving: signs, or normal numbers."""

    @property
    def following(self) -> Solver:
        """How the field is followed."""
        return Solver(self.solver, self.steps, self.tolerance)


class Guided(DensityMethod, ABC):
    """What is learned with and without what rows are conditioned on, so that rows can be guided."""

    later = frozenset({"guidance"})

    condition_dropout: float = Field(0.0, ge=0, lt=1)
    """The share of rows that are learned from without being told what they are conditioned on."""
    guidance: float = Field(1.0, ge=0)
    """How firmly rows that are made hold to what they are conditioned on: 0 is not at all, 1 as the data do, and more
    than 1 goes beyond them; other than 1 it asks for a condition_dropout."""

    @model_validator(mode="after")
    def _can_be_guided(self) -> Self:
        if self.guidance != 1 and not self.condition_dropout:
            raise ValueError(
                f"guidance is {self.guidance:g}, which needs rows learned from without what they are conditioned on: "
                "set condition_dropout, to 0.1 say, or guidance to 1"
            )
        return self
