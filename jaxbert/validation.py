"""Contradictions between the fields of a configuration, found all at once and before anything is read."""

from jaxbert.config import Config, ConfigError


def validate(config: Config, num_devices: int | None = None) -> None:
    """Raise `ConfigError` with every contradiction between fields, one line each. Reads nothing.

    `num_devices`: all devices of the run, over all processes; None leaves the checks against the mesh out.
    """
    problems = [text for wrong, text in _checks(config) if wrong]
    if not problems and num_devices is not None:
        problems = _mesh_problems(config, num_devices)
    if problems:
        raise ConfigError("\n".join(problems))


def _checks(c: Config) -> list[tuple[bool, str]]:
    m, d, k, o, t = c.model, c.data, c.masking, c.optimizer, c.train
    shares = {
        "model.hidden_dropout": m.hidden_dropout, "model.attention_dropout": m.attention_dropout, "data.heldout_share": d.heldout_share,
        "data.max_rejected_share": d.max_rejected_share, "data.random_next_share": d.random_next_share, "data.short_share": d.short_share,
        "masking.share": k.share, "masking.mask_share": k.mask_share, "masking.random_share": k.random_share,
        "optimizer.wsd_decay_share": o.wsd_decay_share, "optimizer.final_learning_rate_share": o.final_learning_rate_share,
    }  # fmt: skip
    positive = {
        "model.hidden_size": m.hidden_size, "model.num_layers": m.num_layers, "model.num_heads": m.num_heads,
        "model.intermediate_size": m.intermediate_size, "model.pad_vocab_to": m.pad_vocab_to, "data.max_sequences": d.max_sequences,
        "data.passes": d.passes, "data.unit_megabytes": d.unit_megabytes, "data.max_document_bytes": d.max_document_bytes,
        "masking.max_span_words": k.max_span_words, "train.num_steps": t.num_steps, "train.batch_size": t.batch_size,
        "train.accumulation_steps": t.accumulation_steps, "train.max_nonfinite_steps": t.max_nonfinite_steps, "train.log_every": t.log_every,
        "train.evaluate_every": t.evaluate_every, "checkpoint.every": c.checkpoint.every, "checkpoint.keep_last": c.checkpoint.keep_last,
        "data.vocabulary.sample_megabytes": d.vocabulary.sample_megabytes, "optimizer.peak_learning_rate": o.peak_learning_rate,
        "optimizer.epsilon": o.epsilon, "model.max_position_embeddings": m.max_position_embeddings, "model.type_vocab_size": m.type_vocab_size,
    }  # fmt: skip
    not_negative = {
        "optimizer.warmup_steps": o.warmup_steps, "optimizer.weight_decay": o.weight_decay, "optimizer.max_grad_norm": o.max_grad_norm,
        "train.alpha": t.alpha, "train.evaluate_batches": t.evaluate_batches, "train.prefetch": t.prefetch, "data.workers": d.workers,
        "train.long_phase.num_steps": t.long_phase.num_steps,
    }  # fmt: skip
    # The rows of [PAD], the unused tokens, [UNK], [CLS], [SEP] and [MASK] come first in a learnt vocabulary.
    reserved = 104
    checks = [(not 0 <= value <= 1, f"{name} is {value}: it is a share, from 0 to 1") for name, value in shares.items()]
    checks += [(value <= 0, f"{name} is {value}: it must be above 0") for name, value in positive.items()]
    checks += [(value < 0, f"{name} is {value}: it must not be negative") for name, value in not_negative.items()]
    checks += [
        (
            m.num_heads > 0 and m.hidden_size % m.num_heads != 0,
            f"model.num_heads ({m.num_heads}) does not divide model.hidden_size ({m.hidden_size})",
        ),
        (m.hidden_dropout == 1, "model.hidden_dropout is 1: nothing would be left"),
        (m.attention_dropout == 1, "model.attention_dropout is 1: nothing would be left"),
        (
            m.attention_backend != "explicit" and m.attention_dropout > 0,
            f'model.attention_backend "{m.attention_backend}" has no dropout: set model.attention_dropout to 0 (it is {m.attention_dropout}) or use "explicit"',
        ),
        (
            d.pairs != "none" and m.type_vocab_size < 2,
            f'data.pairs "{d.pairs}" needs model.type_vocab_size of at least 2 (it is {m.type_vocab_size})',
        ),
        (
            d.pairs == "none" and t.alpha != 0,
            f'data.pairs "none" has no NSP labels: set train.alpha to 0 (it is {t.alpha})',
        ),
        (not d.text, "data.text is empty: name a file, a glob, or builtin"),
        (
            not d.heldout_text and d.heldout_share == 0,
            "data.heldout_share is 0 and data.heldout_text is empty: there is nothing to evaluate on",
        ),
        (
            k.mask_share + k.random_share > 1 + 1e-9,
            f"masking.mask_share ({k.mask_share}) and masking.random_share ({k.random_share}) add up to more than 1",
        ),
        (k.share == 0, "masking.share is 0: there would be nothing to predict"),
        (
            d.vocabulary.path is None and d.vocabulary.size <= reserved,
            f"data.vocabulary.size ({d.vocabulary.size}) must be above the {reserved} reserved tokens",
        ),
        (
            o.warmup_steps > t.num_steps,
            f"optimizer.warmup_steps ({o.warmup_steps}) is more than train.num_steps ({t.num_steps})",
        ),
        (
            t.long_phase.num_steps > t.num_steps,
            f"train.long_phase.num_steps ({t.long_phase.num_steps}) is more than train.num_steps ({t.num_steps}), which counts them",
        ),
    ]
    for phase in c.phases():
        length_field, batch_field, predictions_field = (
            ("data.max_length", "train.batch_size", "masking.max_predictions")
            if phase.first_step == 0 and phase.last_step == t.num_steps - t.long_phase.num_steps
            else ("train.long_phase.max_length", "train.long_phase.batch_size", "train.long_phase.max_predictions")
        )
        checks += [
            (phase.max_length < 8, f"{length_field} is {phase.max_length}: a row needs at least 8 tokens"),
            (
                phase.max_length > m.max_position_embeddings,
                f"{length_field} ({phase.max_length}) is beyond model.max_position_embeddings ({m.max_position_embeddings})",
            ),
            (
                not 0 < phase.max_predictions <= phase.max_length,
                f"{predictions_field} ({phase.max_predictions}) must be from 1 to {length_field} ({phase.max_length})",
            ),
            (
                t.accumulation_steps > 0 and phase.batch_size % t.accumulation_steps != 0,
                f"{batch_field} ({phase.batch_size}) is not divisible by train.accumulation_steps ({t.accumulation_steps})",
            ),
        ]
    return checks


def _mesh_problems(c: Config, num_devices: int) -> list[str]:
    mesh, problems = c.mesh, []
    fixed = mesh.fsdp * mesh.tensor
    if min(mesh.fsdp, mesh.tensor) < 1 or mesh.data == 0 or mesh.data < -1:
        return [
            f"mesh.data ({mesh.data}), mesh.fsdp ({mesh.fsdp}), mesh.tensor ({mesh.tensor}): each is at least 1, or -1 for mesh.data"
        ]
    if num_devices % fixed or (mesh.data != -1 and mesh.data * fixed != num_devices):
        return [
            f"mesh.data ({mesh.data}) x mesh.fsdp ({mesh.fsdp}) x mesh.tensor ({mesh.tensor}) does not make the {num_devices} devices there are"
        ]
    sharers = num_devices // mesh.tensor
    for phase in c.phases():
        if phase.batch_size % (sharers * c.train.accumulation_steps):
            problems.append(
                f"train.batch_size ({phase.batch_size}) is not divisible by the {sharers} devices that share the batch "
                f"x train.accumulation_steps ({c.train.accumulation_steps})"
            )
    for name, value in (
        ("model.num_heads", c.model.num_heads),
        ("model.intermediate_size", c.model.intermediate_size),
        ("model.pad_vocab_to", c.model.pad_vocab_to),
    ):
        if value % mesh.tensor:
            problems.append(f"{name} ({value}) is not divisible by mesh.tensor ({mesh.tensor})")
    if c.model.hidden_size % mesh.fsdp:
        problems.append(f"model.hidden_size ({c.model.hidden_size}) is not divisible by mesh.fsdp ({mesh.fsdp})")
    return problems
