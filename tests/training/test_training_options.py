from __future__ import annotations

from typing import Any

import pytest

from prefkit.errors import OptionError
from prefkit.training import PairingOptions, TrainingOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1e-5}, "unknown option of training 'learning_rat'; did you mean 'learning_rate'?"),
        ({"batch_size": 0}, "training.batch_size must be at least 1, got 0"),
        ({"learning_rate": 0}, "training.learning_rate must be greater than 0"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ({"optimizer": "adamw_tork"}, "unknown optimizer 'adamw_tork'; did you mean 'adamw_torch'?"),
        ({"report_to": ["wandbee"]}, "training.report_to"),
        ({"trainer": {"adam_beta_1": 0.9}}, "did you mean 'adam_beta1'?"),
        ({"trainer": {"learning_rate": 1.0}}, "'learning_rate' is set by the option 'learning_rate'"),
        ({"trainer": {"num_train_epochs": 3}}, "'num_train_epochs' is set by the option 'epochs'"),
        ({"trainer": {"bf16": True}}, "'bf16' does not apply here"),
        ({"trainer": {"label_smoothing_factor": 0.1}}, "'label_smoothing_factor' does not apply here"),
        ({"trainer": {"fsdp_config": {}}}, "trainer.fsdp_config applies only with fsdp=true"),
    ],
)
def test_wrong_options_are_errors_that_say_what_would_be_right(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        TrainingOptions.parse(values, "training")
    assert message in str(caught.value)


def test_other_arguments_of_the_trainer_are_taken() -> None:
    assert TrainingOptions(trainer={"adam_beta1": 0.8}).trainer == {"adam_beta1": 0.8}


def test_every_argument_of_the_trainer_that_is_named_exists() -> None:
    """A new release of transformers that renames an argument is noticed here."""
    from dataclasses import fields

    from transformers import TrainingArguments

    from prefkit.training import options

    known = {field.name for field in fields(TrainingArguments)}
    assert set(options._OWN) | set(options._REFUSED.split()) <= known
    assert set(options._OWN.values()) <= set(TrainingOptions.model_fields)


@pytest.mark.parametrize(
    ("form", "values", "name"),
    [
        ("lists", {"strategy": "adjacent"}, "pairing.strategy"),
        ("labels", {"min_margin": 1.0}, "pairing.min_margin"),
        ("demonstrations", {"ties": "half"}, "pairing.ties"),
        ("pairs", {"threshold": 3.0}, "pairing.threshold"),
    ],
)
def test_pairing_that_does_not_apply_is_an_error(form: Any, values: dict[str, Any], name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} does not apply to an objective that takes {form}"):
        PairingOptions(**values).check(form)
    PairingOptions().check(form)
