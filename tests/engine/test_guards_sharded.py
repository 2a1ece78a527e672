"""Guards where each rank holds a part of every weight: real processes, real shards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import tiny
from danlu.batch import Batch
from danlu.engine.guards.nonfinite import trace_nonfinite
from danlu.engine.guards.weights import Motion
from danlu.engine.launch import joined
from danlu.engine.parallel import Parallel
from danlu.engine.update import Updater
from danlu.method.next_token import NextToken
from danlu.packed import Packed, Targets

SIZE = 2
BAD = 7


def group(sample: int) -> Batch:
    tokens = torch.arange(1, 5 + sample % 3) + sample % 4
    targets = Targets(torch.arange(len(tokens)), tokens, torch.ones(len(tokens)))
    return Batch(Packed.tree([tokens], samples=sample), targets, origin=(f"some.jsonl:{sample}",))


def work() -> dict[str, Any]:
    """In a process of its own: what a rank finds, one of whose samples is bad; then, nothing being bad, what moves."""
    with joined("cpu") as ranks:
        model = tiny.model("llama", dtype=torch.float32)
        mesh = init_device_mesh("cpu", (ranks.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        updater = Updater({"policy": model}, NextToken(), optimizer, torch.device("cpu"), 16, None, 0, Parallel(ranks))
        bad = []
        model.register_forward_pre_hook(lambda _, args: bad.append(BAD in args[0].sample.tolist()))
        burst = lambda _, __, out: out * torch.inf if bad[-1] else out  # noqa: E731
        hook = model.layers[1].mlp.register_forward_hook(burst)
        shares = [[group(i) for i in range(5)], [group(i) for i in range(5, 9)]]
        found = trace_nonfinite(updater, shares[ranks.rank], 3)
        hook.remove()
        motion = Motion(model, after=1, ranks=ranks)
        updater.gradient(shares[ranks.rank][:1], 3)
        for name, parameter in model.named_parameters():
            if name.endswith("layers.1.mlp.down_proj.weight"):
                parameter.grad = None
        updater.move(0.1)
        return {
            "sharded": all(isinstance(parameter, DTensor) for parameter in model.parameters()),
            "trace": [found.cause, found.samples, found.origins, found.among, found.way, found.layer],
            "unmoved": motion.note(),
        }


def main() -> None:
    """Print what `work` gives, and end at once: threads of a group that is gone may else still end the process badly."""
    print(json.dumps(work()), flush=True)
    os._exit(0)


def test_a_sharded_model_is_asked_by_all_ranks_together() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = os.pathsep.join(p for p in sys.path if p)
    common = {"WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": path}
    script = "from engine.test_guards_sharded import main; main()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(SIZE)
    ]
    try:
        told = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        pytest.fail("\n".join(error for _, error in told))
    found = [json.loads(out.splitlines()[-1]) for out, _ in told]
    assert found[0] == found[1]
    assert found[0]["sharded"]
    trace = ["samples", [BAD], [f"some.jsonl:{BAD}"], 9, "output", "layers.1.mlp"]
    assert found[0]["trace"] == trace
    assert found[0]["unmoved"] == (
        "trained parameters that have not moved after 1 updates: "
        "no gradient comes to layers.1.mlp.down_proj.weight, so the loss does not depend on it"
    )
