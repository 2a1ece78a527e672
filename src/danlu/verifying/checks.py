"""All checks, in the order they are told in; a new one adds its line here."""

from __future__ import annotations

from danlu.verifying.gradients import micro_batches_and_order, packed_equals_one_by_one, recomputation
from danlu.verifying.neighbours import no_leak
from danlu.verifying.runs import one_process_equals_two, resuming, ring_equals_one_process
from danlu.verifying.serving import exported_model, training_template_is_serving_template
from danlu.verifying.verdict import Check

CHECKS: tuple[Check, ...] = (
    packed_equals_one_by_one,
    no_leak,
    micro_batches_and_order,
    one_process_equals_two,
    ring_equals_one_process,
    resuming,
    recomputation,
    exported_model,
    training_template_is_serving_template,
)
