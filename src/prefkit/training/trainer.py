"""The loop: transformers' Trainer, told how to score, what to minimise, and how to keep its checkpoints whole.

The model in the Trainer is the scorer, so that DDP and FSDP2 wrap its forward pass. The loss is the sum over entries
divided by the number of entries of the whole update (all processes, all accumulated batches), so how a batch is spread
over processes and steps does not change the numbers.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from prefkit.errors import PrefkitError
from prefkit.objectives import SCORED, DrawsNoise, GroupsWeights, Objective, ResponseScores, Scorer, moving
from prefkit.training import checkpoints, processes
from prefkit.training.data import Batch, Batches, TrainingData
from prefkit.training.meta import MetaLearning
from prefkit.training.metrics import Meter, measure
from prefkit.training.progress import bar
from prefkit.training.storage import explaining

_WEIGHTS, _STATE, _OPTIMIZER = "model.safetensors", "state.safetensors", "optimizer.pt"
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class PreferenceTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """Trains a scorer with an objective.

    Args:
        scorer: the model.
        objective: what is minimised.
        arguments: the Trainer's own arguments.
        data: what to train on.
        evaluation: what to evaluate on.
        metrics: file to which metrics are appended, one JSON object a line.
        keep_checkpoints: older ones are deleted.
        shuffle: take the rows in a new order in each epoch.
        shown: a progress bar to move.
        meta: where the weights go before the loss of an update is computed.
    """

    # The loss is divided by the entries of the whole update already.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        scorer: Scorer,
        objective: Objective[Any],
        arguments: TrainingArguments,
        data: TrainingData,
        *,
        evaluation: TrainingData | None = None,
        metrics: Path,
        keep_checkpoints: int = 2,
        shuffle: bool = True,
        shown: Progress | None = None,
        meta: MetaLearning | None = None,
    ) -> None:
        self.meta, self.difference = meta, torch.tensor(0.0)
        self.scorer, self.objective, self.data, self.evaluation = scorer, objective, data, evaluation
        self.meter, self.metrics = Meter(), metrics
        self.batches = Batches(len(data), arguments.per_device_train_batch_size, arguments.seed if shuffle else None)
        self.keep_checkpoints = keep_checkpoints
        self._update: list[tuple[Tensor, Tensor]] = []
        self._rows: dict[str, dict[int, float]] = {name: {} for name in objective.row_figures()}
        self._window: Tensor | None = None
        self._bootstrap: Tensor | None = None
        course = _Course(self, shown or bar(False))
        super().__init__(model=scorer, args=arguments, train_dataset=data, eval_dataset=evaluation, callbacks=[course])
        self.remove_callback(PrinterCallback)

    def create_accelerator_and_postprocess(self) -> None:
        """Set up accelerate, with FSDP2 on the CPU too."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is not None and not self.is_fsdp_enabled:
            # accelerate shards on accelerators only; elsewhere it goes on with DDP and says nothing.
            state = self.accelerator.state
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled: bool = True

    def fit(self, checkpoint: Path | None = None) -> int:
        """Train to the end.

        Args:
            checkpoint: where to go on from.

        Returns:
            Updates of the model, those before the checkpoint included.
        """
        planned = math.ceil(self.args.num_train_epochs * self.updates)
        end = self.args.max_steps if self.args.max_steps > 0 else planned
        if checkpoint is not None and checkpoints.step_of(checkpoint) >= end:
            self._load_from_checkpoint(str(checkpoint))
            return checkpoints.step_of(checkpoint)
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        return int(self.state.global_step)

    @property
    def updates(self) -> int:
        """Updates of the model in a pass over the data."""
        return math.ceil(len(self.batches) / int(self.args.gradient_accumulation_steps))

    def full_state(self) -> dict[str, Tensor] | None:
        """All weights, on the CPU, where each process holds a shard of them; else None. All processes call it."""
        if not any(isinstance(weight, DTensor) for weight in self.model.parameters()):
            return None
        state: dict[str, Any] = get_model_state_dict(self.model, options=_FULL)
        return state

    # -- data -------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training data; see `Batches`."""
        return self.data.loader(self.scorer, self.batches, self.args.dataloader_num_workers)

    def get_eval_dataloader(self, eval_dataset: TrainingData | None = None) -> DataLoader[Any]:
        """Batches of the evaluation data, in its own order."""
        data = eval_dataset or self.evaluation
        assert data is not None
        return data.loader(self.scorer, Batches(len(data), self.args.per_device_eval_batch_size, seed=None))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], float]:
        """The batches of one update, and the number of their entries in all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        entries = float(sum(len(batch["targets"]) for batch in batches))
        if processes.count() > 1:
            entries = float(processes.total(torch.tensor(entries, device=device)))
        return batches, entries

    # -- steps ------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: float | None = None,
    ) -> Tensor:
        """This process's part of the loss of an update."""
        losses, figures = self._losses(model, inputs, training=True)
        if self.meta is not None:
            figures["meta_difference"] = self.difference.expand(len(losses))
        self.meter.add(figures)
        for name, kept in self._rows.items():
            kept.update(zip(inputs["targets"].rows.tolist(), figures[name].tolist(), strict=True))
        self._update.append((losses.detach(), inputs["targets"].rows))
        # Gradients are averaged over the processes, and what is wanted is their sum.
        loss: Tensor = losses.sum() * (processes.count() / num_items_in_batch)  # type: ignore[operator]  # always given
        return loss

    def _losses(self, model: nn.Module, batch: Batch, *, training: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        scores = _with_reference(model(batch["inputs"]), batch)
        if not self.objective.needs & SCORED:
            scores = replace(scores, tokens=None)
        targets = batch["targets"].to(scores.policy_logps.device)
        view = targets.view(scores)
        if scores.members is None:
            losses = self.objective(view)
        else:
            each = torch.stack([self.objective(targets.view(member)) for member in scores.each_member()])
            if training:
                each = each * self._member_weights(len(each))[:, batch["targets"].rows].to(each)
            losses = each.mean(0)
        kind = "reward" if "rewards" in self.objective.needs else "logp"
        figures = measure(view, losses, self.objective.rewards(view), kind) | self.objective.figures()
        return losses, figures

    def _member_weights(self, members: int) -> Tensor:
        """`[members, rows]`, weights of the rows by the Bayesian bootstrap; the same in a run that is resumed."""
        if self._bootstrap is None:
            generator = torch.Generator().manual_seed(self.args.seed)
            drawn = torch.empty(members, len(self.data)).exponential_(generator=generator)
            self._bootstrap = drawn / drawn.mean(1, keepdim=True)
        return self._bootstrap

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Any:
        """The gradients' norm, known after the last backward pass of an update and before the weights change.

        Raises:
            PrefkitError: a loss, or the gradient, is not finite; names the rows.
        """
        if processes.count() > 1:
            for weight in self.objective.parameters():
                # The model's gradients are averaged over the processes by DDP; nothing wraps the objective.
                if weight.grad is not None:
                    weight.grad = processes.total(weight.grad) / processes.count()
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        update, self._update = self._update, []
        seen = sum((losses.sum() for losses, _ in update), torch.as_tensor(norm, device=self.args.device))
        # The one moment in an update in which the processor waits for the device.
        if not torch.isfinite(seen):
            raise PrefkitError(self._explain(update))
        return norm

    def _explain(self, update: list[tuple[Tensor, Tensor]]) -> str:
        entries = [entry for losses, rows in update for entry in zip(losses.tolist(), rows.tolist(), strict=True)]
        bad = [(loss, row) for loss, row in entries if not math.isfinite(loss)]
        what, named = ("loss", bad) if bad else ("gradient", entries)
        rows = [f"{self.data.where(row)} (loss {loss:.4g})" for loss, row in dict.fromkeys(named)]
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        return (
            f"the {what} is not finite at step {self.state.global_step + 1}: {', '.join(rows[:8])}{more}; the weights "
            "were not changed. Look at these rows, or lower training.learning_rate"
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss and metrics of the evaluation data."""
        model, meter, entries = self.model_wrapped, Meter(), 0
        model.eval()
        self.objective.eval()
        with torch.no_grad():
            for batch in dataloader:
                meter.add(self._losses(model, self._prepare_inputs(batch))[1])
                entries += len(batch["targets"])
        self.objective.train()  # the Trainer does the same for the model alone
        means = {f"{metric_key_prefix}_{name}": value for name, value in meter.means().items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=means, num_samples=entries)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report metrics to `metrics.jsonl` and to the integrations.

        Raises:
            PrefkitError: the file cannot be written.
        """
        if "loss" in logs:
            # The Trainer's own mean starts over when a run is resumed; this one does not.
            logs |= self.meter.means()
        super().log(logs, start_time)
        if self.is_world_process_zero() and ("loss" in logs or "eval_loss" in logs):
            line = {"step": self.state.global_step, "epoch": self.state.epoch, **logs}
            with explaining(self.metrics, "free some space and resume the run"), self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the scorer's weights and of those that the objective trains."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*(() if model is None else (model,)))
        if isinstance(self.scorer, GroupsWeights):
            for options, weights in self.scorer.weight_groups():
                own = {id(weight) for weight in weights}
                for group in optimizer.param_groups:
                    group["params"] = [weight for weight in group["params"] if id(weight) not in own]
                if trained := [weight for weight in weights if weight.requires_grad]:
                    optimizer.add_param_group({"params": trained, **options})
        known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        for options, weights in self.objective.weight_groups():
            if weights and id(weights[0]) not in known:
                optimizer.add_param_group({"params": weights, **options})
        return optimizer

    def write_rows(self, path: Path) -> None:
        """Write the last figures of each row that the objective wants kept, if it wants any."""
        if not self._rows:
            return
        part = path.with_name(f".{path.stem}.{processes.rank()}.json")
        part.write_text(json.dumps(self._rows), encoding="utf-8")
        processes.wait()
        if self.is_world_process_zero():
            parts = [path.with_name(f".{path.stem}.{rank}.json") for rank in range(processes.count())]
            kept = [json.loads(each.read_text(encoding="utf-8")) for each in parts]
            joined = {
                name: {int(row): value for one in kept for row, value in one[name].items()} for name in self._rows
            }
            rows = sorted(set().union(*joined.values()))
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["row", "place", *joined])
                writer.writerows(
                    [row + 1, self.data.where(row), *(joined[name].get(row) for name in joined)] for row in rows
                )
            for each in parts:
                each.unlink()
        processes.wait()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, make sure that it is whole, and only then delete an older one.

        Raises:
            PrefkitError: it cannot be written; the last good one is still there.
        """
        folder = Path(self.args.output_dir)
        checkpoint = checkpoints.place(folder, self.state.global_step)
        self._window = self.meter.total()
        advice = "the last good checkpoint is kept: free some space and resume the run"
        try:
            with explaining(checkpoint, advice):
                processes.in_first(lambda: checkpoints.discard(checkpoint))
                super()._save_checkpoint(model, trial)
                processes.wait()
                if self.is_world_process_zero():
                    checkpoints.finish(checkpoint)
        except PrefkitError:
            checkpoints.discard(checkpoint)
            raise
        if self.is_world_process_zero():
            checkpoints.keep(folder, checkpoint, self.keep_checkpoints)
        processes.wait()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what is trained to a folder; all processes call it."""
        if self.is_fsdp_enabled:
            self._save(output_dir, self.full_state())
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write what is trained: frozen weights come back from where the model came from."""
        if not self.args.should_save or output_dir is None:
            return
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.model.state_dict() if state_dict is None else state_dict
        save_file({name: weights[name].contiguous() for name in moving(self.model)}, folder / _WEIGHTS)
        state = {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        if self._window is not None:
            state["meter"] = self._window
        save_file(state, folder / _STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        weights = load_file(folder / _WEIGHTS)
        model = self.model if model is None else model
        if set(weights) != set(moving(model)):
            raise PrefkitError(f"{folder} holds other weights than the model that is to be trained")
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=False))
        state = load_file(folder / _STATE)
        if processes.rank() == 0:
            self.meter.sums = state.get("meter")
        names = [name for name in state if name.startswith("objective.")]
        self.objective.load_state_dict({name.removeprefix("objective."): state[name] for name in names})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # accelerate would write the weights a second time, and as a pickle.
        state = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=_FULL)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / _OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / _OPTIMIZER, weights_only=True)
        set_optimizer_state_dict(self.model, self.optimizer.optimizer, state, options=_FULL)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))


class _Course(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Tells the data which epoch it is, asks for metrics after the last update, and moves the progress bar."""

    def __init__(self, trainer: PreferenceTrainer, shown: Progress) -> None:
        self._trainer, self._bar = trainer, shown
        self._task = shown.add_task("training", note="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.batches.epoch = int(state.epoch or 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.objective.advance(state.global_step)
        if isinstance(self._trainer.scorer, DrawsNoise):
            self._trainer.scorer.begin(state.global_step)
        if self._trainer.meta is not None:
            self._trainer.difference = self._trainer.meta.leave(self._trainer.model_wrapped, state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.meta is not None:
            self._trainer.meta.come_back()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Before a checkpoint is written, so that the state of the objective in it is that of the step.
        self._trainer.objective.after_update(pass_ended=state.global_step % self._trainer.updates == 0)
        control.should_log |= state.global_step >= state.max_steps
        # The Trainer knows of the model's gradients only.
        self._trainer.objective.zero_grad()
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            shown = {name: logs[name] for name in ("loss", "reward_margin") if name in logs}
            self._bar.update(self._task, note="  ".join(f"{name} {value:.4f}" for name, value in shown.items()))


def _with_reference(scores: ResponseScores, batch: Batch) -> ResponseScores:
    if batch["ref_logps"] is None:
        return scores
    tokens = scores.tokens
    if tokens is not None and batch["ref_token_logps"] is not None:
        tokens = replace(tokens, ref_logps=batch["ref_token_logps"])
    return replace(scores, ref_logps=batch["ref_logps"], tokens=tokens)
