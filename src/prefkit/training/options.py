"""The options of a training run, with defaults and where they come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prefkit.errors import unknown
from prefkit.options import Options

_OWN = {
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "optim": "optimizer",
    "gradient_checkpointing": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "seed": "seed",
    "data_seed": "seed",
    "logging_steps": "log_every",
    "save_steps": "save_every",
    "save_total_limit": "keep_checkpoints",
    "eval_steps": "eval_every",
    "report_to": "report_to",
    "disable_tqdm": "progress",
    "fsdp": "fsdp",
    "dataloader_num_workers": "workers",
    "train_sampling_strategy": "shuffle",
}
"""Arguments of the Trainer that have a name of their own here."""

_REFUSED = """
    output_dir logging_strategy save_strategy eval_strategy eval_on_start eval_delay logging_first_step
    logging_nan_inf_filter remove_unused_columns label_names label_smoothing_factor length_column_name
    dataloader_drop_last accelerator_config average_tokens_across_devices auto_find_batch_size neftune_noise_alpha
    use_liger_kernel liger_kernel_config include_for_metrics include_num_input_tokens_seen batch_eval_metrics
    prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps load_best_model_at_end
    metric_for_best_model greater_is_better save_only_model enable_jit_checkpoint ignore_data_skip
    restore_callback_states_from_checkpoint resume_from_checkpoint do_train do_eval do_predict push_to_hub hub_token
    hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision bf16 fp16 fp16_full_eval bf16_full_eval
    activation_checkpointing_kwargs gradient_checkpointing_kwargs use_cache local_rank dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
    save_on_each_node parallelism_config deepspeed
"""
"""Arguments of the Trainer that would do nothing here, or break what a run promises."""


class TrainingOptions(Options):
    """How a model is trained.

    The defaults are those of full fine-tuning of a language model with DPO: learning rate, batch size and warmup are
    of the order of Rafailov et al. (2023), appendix B (1e-6; 64 comparisons; 150 steps). A LoRA adapter wants about
    ten times the learning rate, a model of a few million parameters about a hundred times.
    """

    epochs: float = Field(1.0, gt=0, description="passes over the data")
    max_steps: int | None = Field(None, ge=1, description="stop after so many updates, whatever `epochs` says")
    batch_size: int = Field(8, ge=1, description="comparisons a step and process")
    gradient_accumulation: int = Field(1, ge=1, description="steps whose gradients make one update")
    learning_rate: float = Field(1e-6, gt=0, description="highest learning rate")
    schedule: str = Field("linear", description="course of the learning rate, by transformers' name")
    warmup: float = Field(0.1, ge=0, description="updates of warmup; below 1, as a share of all updates")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are scaled down to this norm; 0 leaves them")
    optimizer: str = Field("adamw_torch_fused", description="optimizer, by transformers' name")
    gradient_checkpointing: bool = Field(False, description="compute activations again instead of keeping them")
    shuffle: bool = Field(True, description="a new order in each epoch; False keeps the order of the data")
    seed: int = Field(0, ge=0, description="fixes the order of the data and dropout")
    log_every: int = Field(10, ge=1, description="updates between two lines of metrics")
    save_every: int | None = Field(None, ge=0, description="updates between two checkpoints; None: each epoch; 0: none")
    keep_checkpoints: int = Field(2, ge=1, description="older checkpoints are deleted")
    eval_every: int | None = Field(None, ge=1, description="updates between two evaluations; None: each epoch")
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field((), description="where metrics also go")
    fsdp: bool = Field(False, description="shard weights, gradients and optimizer over the processes (FSDP2)")
    workers: int = Field(0, ge=0, description="processes that prepare batches")
    progress: bool = Field(True, description="show a progress bar")
    trainer: dict[str, Any] = Field({}, description="further arguments of transformers.TrainingArguments")

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        from transformers import SchedulerType

        return _one_of("schedule", name, [kind.value for kind in SchedulerType])

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        from transformers.training_args import OptimizerNames

        return _one_of("optimizer", name, [kind.value for kind in OptimizerNames])

    @field_validator("trainer")
    @classmethod
    def _known_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        from dataclasses import fields

        from transformers import TrainingArguments

        known = {field.name for field in fields(TrainingArguments)}
        for name in arguments:
            if name in _OWN:
                raise ValueError(f"'{name}' is set by the option '{_OWN[name]}'")
            if name in _REFUSED.split():
                raise ValueError(f"'{name}' does not apply here")
            if name not in known:
                raise ValueError(unknown("argument of transformers.TrainingArguments", name, known))
        return arguments

    @model_validator(mode="after")
    def _fsdp_has_settings(self) -> TrainingOptions:
        if "fsdp_config" in self.trainer and not self.fsdp:
            raise ValueError("trainer.fsdp_config applies only with fsdp=true")
        return self


def _one_of(what: str, name: str, known: list[str]) -> str:
    if name not in known:
        raise ValueError(unknown(what, name, known))
    return name
