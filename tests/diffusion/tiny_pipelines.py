"""Small pipelines of every style that the library meets, of the classes of diffusers, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="pipelines need the extra 'diffusion'")

import diffusers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SIDE = 16
# diffusers says a lot of small models that are no one's.
diffusers.utils.logging.set_verbosity_error()
SCHEDULE = {"num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.12, "beta_schedule": "scaled_linear"}


def tokenizer() -> Any:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: place for place, token in enumerate(tokens)}, merges=[], model_max_length=8)


def text_encoder(projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIDE,
    )


def unet(**more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        **more,
    )


def stable_diffusion(prediction: str = "epsilon") -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE, prediction_type=prediction, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=_wide_unet(),
        scheduler=diffusers.DDPMScheduler(**SCHEDULE),
    )


def _wide_unet() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )


def stable_diffusion_3() -> Any:
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=SIDE // 2,
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            out_channels=4,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=100, shift=3.0),
        vae=vae(),
        text_encoder=text_encoder(projected=True),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(projected=True),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def dit() -> Any:
    return diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(
            sample_size=SIDE // 2,
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            patch_size=2,
            num_embeds_ada_norm=10,
            norm_num_groups=4,
        ),
        vae=vae(),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE),
    )


def pixels() -> Any:
    return diffusers.DDPMPipeline(
        unet=diffusers.UNet2DModel(
            sample_size=SIDE,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
        ),
        scheduler=diffusers.DDPMScheduler(**SCHEDULE),
    )


def inpainting() -> Any:
    return diffusers.StableDiffusionInpaintPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(in_channels=9, out_channels=4),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


STYLES = {
    "sd": stable_diffusion,
    "sd-v": lambda: stable_diffusion("v_prediction"),
    "sd-sample": lambda: stable_diffusion("sample"),
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "dit": dit,
    "pixels": pixels,
}


def saved(style: str, folder: Path, seed: int = 0) -> str:
    """Folder of a new pipeline."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = inpainting() if style == "inpainting" else STYLES[style]()
        made.save_pretrained(folder, safe_serialization=True)
    if style == "dit":  # as in the published folder, which diffusers does not write
        index = folder / "model_index.json"
        labels = {str(place): f"digit {place}" for place in range(10)}
        index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": labels}))
    return str(folder)
