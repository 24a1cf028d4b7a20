"""A pretraining step of BERT (forward, backward, clipping, AdamW; dropout 0.1, MLM + NSP) against transformers on torch.

    python benchmarks/train_step.py [--model base|large] [--length N ...] [--batch N] [--dtype float32|bfloat16]

Ours is the step that `train.py` runs. The peer is `BertForPreTraining` with fused AdamW, SDPA attention and the faster of eager and
`torch.compile`; its labels are -100 where nothing is masked, as transformers wants them. Both see the same rows, and real
tokens per second count no padding. Without arguments: base, 4 rows of 128, float32, and in bfloat16 where the CPU multiplies that
natively; on a GPU base and large in bfloat16 at 128 and 512 besides. On a GPU, ten steps are timed together, as in a training loop, which waits for none. Without torch or transformers, or
where torch does not see the GPU, there is no peer.
"""

import argparse
import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

# Both sides share a GPU's memory; jax would take three quarters of it for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from measure import Measurement, alternate, parser, show

from jaxbert.allocator import keep_freed_memory
from jaxbert.config import MeshConfig, ModelConfig, OptimizerConfig
from jaxbert.model.dense import multiplies_bfloat16
from jaxbert.tasks.pretraining import PretrainingTask
from jaxbert.train.flops import model_flops, peak_flops
from jaxbert.train.optimizer import make_optimizer, make_schedule
from jaxbert.train.sharding import make_mesh, put_batch
from jaxbert.train.state import create_state
from jaxbert.train.step import make_train_step

SIZES = {
    "base": {},
    "large": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096},
    # To see in seconds that the script works.
    "mini": {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "intermediate_size": 1024},
}
VOCABULARY, MASK = 30522, 103
OPTIMIZER = OptimizerConfig(warmup_steps=0, schedule="constant")
Batch = dict[str, np.ndarray]
Side = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: a size of model, rows of a length, and the compute type."""

    model: str
    rows: int
    length: int
    dtype: Literal["float32", "bfloat16"]


PROMISED = Case("base", 4, 128, "float32")


def make_batch(rows: int, length: int) -> Batch:
    """Rows of one sequence, a tenth of them short, 15 % of the tokens masked."""
    generator = np.random.default_rng(0)
    short = generator.random((rows, 1)) < 0.1
    lengths = np.where(short, generator.integers(length // 4, length, (rows, 1)), length)
    columns = np.broadcast_to(np.arange(length), (rows, length))
    real = columns < lengths
    predictions = -(-15 * length // 100)
    chosen = np.argsort(np.where(real & (columns > 0), generator.random((rows, length)), 2.0), axis=1)[:, :predictions]
    targets = np.arange(predictions)[None, :] < np.round(0.15 * lengths)
    positions = np.where(targets, chosen, 0)
    ids = generator.integers(1000, VOCABULARY, (rows, length)) * real
    labels = np.take_along_axis(ids, positions, axis=1) * targets
    masked = ids.copy()
    np.put_along_axis(masked, chosen, np.where(targets, MASK, np.take_along_axis(ids, chosen, axis=1)), axis=1)
    integers = {
        "input_ids": masked,
        "token_type_ids": (columns >= lengths // 2) & real,
        "sequence_ids": real,
        "position_ids": columns * real,
        "mlm_positions": positions,
        "mlm_labels": labels,
        "cls_positions": np.zeros((rows, 1)),
        "nsp_labels": generator.integers(0, 2, (rows, 1)),
    }
    floats = {"mlm_weights": targets, "nsp_weights": np.ones((rows, 1))}
    return {name: values.astype(np.int32) for name, values in integers.items()} | {
        name: values.astype(np.float32) for name, values in floats.items()
    }


def jaxbert_side(model: ModelConfig, batch: Batch, steps: int = 1) -> Side:
    """Steps of ours, from host batches to the metrics of the last on the host."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    task, key = PretrainingTask(model), jax.random.key(0)
    optimizer = make_optimizer(OPTIMIZER, 1000, jax.eval_shape(task.init, key))
    state, shardings = create_state(task, optimizer, 0, mesh)
    step = make_train_step(task, optimizer, make_schedule(OPTIMIZER, 1000), shardings, mesh, seed=0)

    def run() -> object:
        nonlocal state
        metrics = None
        for _ in range(steps):
            state, metrics = step(state, put_batch(batch, mesh))
        return jax.device_get(metrics)

    return run


def torch_side(model: ModelConfig, batch: Batch, compiled: bool, steps: int = 1) -> Side:
    """Steps of the peer, from host batches to the loss of the last on the host."""
    import torch
    import transformers

    device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
    )
    config._attn_implementation = "sdpa"
    peer: Any = transformers.BertForPreTraining(config)
    peer = peer.to(device).train()
    plain = [p for p in peer.parameters() if p.ndim == 1]
    decayed = [p for p in peer.parameters() if p.ndim > 1]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": OPTIMIZER.weight_decay}]
    rate, betas = OPTIMIZER.peak_learning_rate, (OPTIMIZER.beta1, OPTIMIZER.beta2)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=OPTIMIZER.epsilon, fused=True)
    forward: Any = torch.compile(peer) if compiled else peer
    labels = np.full(batch["input_ids"].shape, -100)
    rows, columns = np.nonzero(batch["mlm_weights"])
    labels[rows, batch["mlm_positions"][rows, columns]] = batch["mlm_labels"][rows, columns]
    inputs = {
        "input_ids": batch["input_ids"],
        "token_type_ids": batch["token_type_ids"],
        "attention_mask": batch["sequence_ids"],
        "labels": labels,
        "next_sentence_label": batch["nsp_labels"][:, 0],
    }
    bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=model.dtype == "bfloat16")

    def run() -> object:
        loss = torch.zeros(())
        for _ in range(steps):
            tensors = {name: torch.from_numpy(values).long().to(device) for name, values in inputs.items()}
            with bfloat16:
                loss = forward(**tensors).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), OPTIMIZER.max_grad_norm, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def peer_sides(model: ModelConfig, batch: Batch, choice: str, steps: int) -> dict[str, Side]:
    """The peer as it is and compiled, each that works here."""
    if choice == "none" or not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return {}
    import torch

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        print("torch sees no GPU: no peer")
        return {}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")
    sides = {}
    for name in ("eager", "compiled"):
        if choice not in ("best", name):
            continue
        side = torch_side(model, batch, name == "compiled", steps)
        try:
            side()
        except Exception as error:
            # Whatever keeps torch.compile from working (no C++ compiler, for one) leaves the eager peer.
            print(f"the {name} peer does not work here: {str(error).splitlines()[0][:100]}")
            continue
        sides[name] = side
    return sides


def measure(case: Case, options: argparse.Namespace) -> list[Measurement]:
    """Tokens per second of both sides, and our model-FLOPs utilisation where the device's peak is known."""
    on_gpu = jax.default_backend() == "gpu"
    attention = options.attention or ("gpu_flash" if on_gpu and case.dtype == "bfloat16" else "explicit")
    model = ModelConfig(vocab_size=VOCABULARY, dtype=case.dtype, attention_backend=attention, **SIZES[case.model])
    batch = make_batch(case.rows, case.length)
    tokens = int(batch["sequence_ids"].sum())
    name = f"{case.model}, {case.rows} x {case.length}, {case.dtype}"
    peers = peer_sides(model, batch, options.peer, options.steps)
    # Behind the peer's and not beside it: XLA times kernels while it compiles.
    side, start = jaxbert_side(model, batch, options.steps), time.perf_counter()
    side()
    print(f"{name}, {attention} attention: compiled in {time.perf_counter() - start:.0f} s", flush=True)
    seconds = alternate([side, *peers.values()], options.rounds, warmup=2)
    ours, *theirs = (total / options.steps for total in seconds)
    for peer, of_peer in zip(peers, theirs, strict=True):
        print(f"{name}: peer {peer} {1000 * of_peer:.1f} ms, ours {1000 * ours:.1f} ms", flush=True)
    promised = 1.7 if theirs and case == PROMISED else None
    peer = tokens / min(theirs) if theirs else None
    measurements = [Measurement(name, tokens / ours, peer, "real tokens/s", promised)]
    peak = peak_flops(jax.devices()[0].device_kind, case.dtype)
    if peak:
        flops = model_flops(
            model,
            tokens=tokens,
            attended_length=float(np.sum(batch["sequence_ids"].sum(axis=1) ** 2) / tokens),
            predictions=float(batch["mlm_weights"].sum()),
            sequences=case.rows,
        )
        share = flops / ours / peak
        measurements.append(Measurement(f"{name}: model FLOPs", 100 * share, None, "% of the bf16 peak"))
    return measurements


def chosen_cases(options: argparse.Namespace, on_gpu: bool) -> Sequence[Case]:
    """What the command line asks for; without a choice, what the promise is about, and on a GPU the rest."""
    if not any((options.model, options.length, options.batch, options.dtype)):
        if on_gpu:
            others = [
                Case(size, 16384 // length, length, "bfloat16") for size in ("base", "large") for length in (128, 512)
            ]
        else:
            others = [dataclasses.replace(PROMISED, dtype="bfloat16")] if multiplies_bfloat16() else []
        return [PROMISED, *others]
    dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    lengths = options.length or ([128, 512] if on_gpu else [128])
    return [
        Case(options.model or "base", options.batch or (16384 // length if on_gpu else 4), length, dtype)
        for length in lengths
    ]


def main() -> None:
    """Measure the chosen sizes and lengths."""
    # As train.py does; it serves both sides.
    keep_freed_memory()
    on_gpu = jax.default_backend() == "gpu"
    options = parser(__doc__)
    options.add_argument("--model", choices=SIZES, help="default: base; on a GPU base and large")
    options.add_argument("--length", type=int, nargs="+", help="default: 128; on a GPU 128 and 512")
    options.add_argument("--batch", type=int, help="rows; default: 4, on a GPU 16,384 tokens' worth")
    options.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32; on a GPU bfloat16")
    options.add_argument(
        "--attention", help="our model.attention_backend; default: explicit; in bfloat16 on a GPU gpu_flash"
    )
    options.add_argument("--rounds", type=int, default=15, help="timed rounds of each side")
    options.add_argument("--steps", type=int, default=10 if on_gpu else 1, help="steps a round")
    options.add_argument("--peer", choices=["best", "eager", "compiled", "none"], default="best")
    options = options.parse_args()
    if options.quick:
        options.rounds, options.model = 3, options.model or "mini"
    measurements = []
    for case in chosen_cases(options, on_gpu):
        measurements += measure(case, options)
        # Each takes minutes: what was measured is there, whatever ends the next.
        show(measurements, options.json)


if __name__ == "__main__":
    main()
