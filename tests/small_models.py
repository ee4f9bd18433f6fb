"""Randomly initialised pipelines of a few thousand parameters, with the bundled tokenizer.

Weights that no checkpoint fills come from the seed; a model is the same each time it is built.
"""

import copy
from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from shared.model_names import BUNDLED_MODELS

_HIDDEN = 32


def small_stable_diffusion(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """An SD 1.x or 2.x pipeline: 64 px native, 8 pixels a latent."""
    torch.manual_seed(0)
    return _quiet(StableDiffusionPipeline(**_stable_diffusion_parts(prediction_type)))


def small_controlnet() -> StableDiffusionControlNetPipeline:
    """The same pipeline with a ControlNet whose output is not zero."""
    torch.manual_seed(0)
    parts = _stable_diffusion_parts()
    return _quiet(StableDiffusionControlNetPipeline(**parts, controlnet=_controlnet(parts["unet"])))


def small_stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """An SDXL pipeline: two text encoders, pooled embeddings and sizes as extra conditions."""
    torch.manual_seed(0)
    return _quiet(StableDiffusionXLPipeline(**_stable_diffusion_xl_parts(), add_watermarker=False))


def small_controlnet_xl() -> StableDiffusionXLControlNetPipeline:
    torch.manual_seed(0)
    parts = _stable_diffusion_xl_parts()
    controlnet = _controlnet(parts["unet"])
    return _quiet(
        StableDiffusionXLControlNetPipeline(**parts, controlnet=controlnet, add_watermarker=False)
    )


def add_ip_adapter(pipeline: DiffusionPipeline) -> None:
    """Give an SD or SDXL pipeline an image encoder and an IP-Adapter, as diffusers loads one."""
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=_HIDDEN,
        projection_dim=_HIDDEN,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    pipeline.register_modules(
        image_encoder=CLIPVisionModelWithProjection(config).eval(),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    )
    pipeline.unet._load_ip_adapter_weights([_ip_adapter_weights(pipeline.unet)])


def small_stable_diffusion_3() -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    return _quiet(
        StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=1,
                in_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=_HIDDEN,
                caption_projection_dim=_HIDDEN,
                pooled_projection_dim=2 * _HIDDEN,
                out_channels=4,
                pos_embed_max_size=16,
            ).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(shift_factor=0.06),
            text_encoder=CLIPTextModelWithProjection(_text_config()).eval(),
            tokenizer=_tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(_text_config()).eval(),
            tokenizer_2=_tokenizer(),
            text_encoder_3=_t5(),
            tokenizer_3=_tokenizer(),
        )
    )


def small_flux() -> FluxPipeline:
    torch.manual_seed(0)
    return _quiet(
        FluxPipeline(
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=_HIDDEN,
                pooled_projection_dim=_HIDDEN,
                guidance_embeds=True,
                axes_dims_rope=(4, 4, 8),
            ).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=_vae(shift_factor=0.06),
            text_encoder=CLIPTextModel(_text_config()).eval(),
            tokenizer=_tokenizer(),
            text_encoder_2=_t5(),
            tokenizer_2=_tokenizer(),
        )
    )


def small_pixart() -> PixArtAlphaPipeline:
    torch.manual_seed(0)
    return _quiet(
        PixArtAlphaPipeline(
            transformer=PixArtTransformer2DModel(
                sample_size=8,
                num_layers=2,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_channels=_HIDDEN,
                cross_attention_dim=32,
                in_channels=4,
                out_channels=8,
            ).eval(),
            scheduler=DPMSolverMultistepScheduler(),
            vae=_vae(),
            text_encoder=_t5(),
            tokenizer=_tokenizer(),
        )
    )


def small_sana() -> SanaPipeline:
    torch.manual_seed(0)
    blocks = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
    return _quiet(
        SanaPipeline(
            transformer=SanaTransformer2DModel(
                patch_size=1,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=4,
                num_cross_attention_heads=2,
                cross_attention_head_dim=4,
                cross_attention_dim=8,
                caption_channels=_HIDDEN,
                sample_size=8,
            ).eval(),
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            vae=AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_out_channels=(8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8),
                encoder_layers_per_block=(1, 1, 1, 1),
                decoder_layers_per_block=(1, 1, 1, 1),
                encoder_qkv_multiscales=((), (), (), ()),
                decoder_qkv_multiscales=((), (), (), ()),
                downsample_block_type="conv",
                upsample_block_type="interpolate",
                **blocks,
            ).eval(),
            text_encoder=_gemma(),
            tokenizer=_tokenizer(),
        )
    )


def small_z_image() -> ZImagePipeline:
    """Without its text encoder: requests bring embeddings (see `z_image_prompts`)."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=_HIDDEN,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    ).eval()
    with torch.no_grad():  # these two are left uninitialised
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    return _quiet(
        ZImagePipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(shift_factor=0.06),
            text_encoder=None,
            tokenizer=None,
        )
    )


def small_qwen_image() -> QwenImagePipeline:
    """Without its text encoder: requests bring embeddings."""
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    with torch.no_grad():  # as it is drawn, every picture is nearly grey
        vae.decoder.conv_out.weight.mul_(30)
    return _quiet(
        QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(
                patch_size=2,
                in_channels=64,
                out_channels=16,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=_HIDDEN,
                axes_dims_rope=(8, 4, 4),
            ).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=vae,
            text_encoder=None,
            tokenizer=None,
        )
    )


def _quiet(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _stable_diffusion_parts(prediction_type: str = "epsilon") -> dict[str, object]:
    return {
        "vae": _vae(),
        "text_encoder": CLIPTextModel(_text_config()).eval(),
        "tokenizer": _tokenizer(),
        "unet": _unet(cross_attention_dim=_HIDDEN),
        "scheduler": DDIMScheduler(
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _stable_diffusion_xl_parts() -> dict[str, object]:
    return {
        "vae": _vae(),
        "text_encoder": CLIPTextModel(_text_config()).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(_text_config()).eval(),
        "tokenizer": _tokenizer(),
        "tokenizer_2": _tokenizer(),
        "unet": _unet(
            cross_attention_dim=2 * _HIDDEN,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=_HIDDEN + 6 * 8,
        ),
        "scheduler": EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    }


def _controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(4, 4, 8, 8)
    ).eval()
    with torch.no_grad():
        for parameter in controlnet.parameters():  # the layers that would pass it on begin at zero
            if not parameter.any():
                parameter.normal_(std=0.05)
    return controlnet


def _ip_adapter_weights(unet: UNet2DConditionModel) -> dict[str, dict[str, torch.Tensor]]:
    """In the layout of the published checkpoints: a projection and two maps per cross attention."""
    context, tokens = unet.config.cross_attention_dim, 4
    projection = {
        "proj.weight": torch.randn(tokens * context, _HIDDEN),
        "proj.bias": torch.zeros(tokens * context),
        "norm.weight": torch.ones(context),
        "norm.bias": torch.zeros(context),
    }
    maps = {}
    cross_attentions = [name for name in unet.attn_processors if "attn2" in name]
    for i, name in enumerate(cross_attentions):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            maps[f"{2 * i + 1}.{part}.weight"] = torch.randn(width, context)
    return {"image_proj": projection, "ip_adapter": maps}


def _unet(**options: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        **options,
    ).eval()


def _vae(**options: object) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **options,
    ).eval()


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(_tokenizer()), d_model=_HIDDEN, d_kv=8, d_ff=64, num_layers=1, num_heads=4
    )
    return T5EncoderModel(config).eval()


def _gemma() -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=len(_tokenizer()),
        hidden_size=_HIDDEN,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    return Gemma2Model(config).eval()


def _text_config() -> CLIPTextConfig:
    tokenizer = _tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=_HIDDEN,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(BUNDLED_MODELS / "postcard" / "tokenizer")


def write_lora(pipeline: DiffusionPipeline, file: Path, seed: int) -> None:
    """A LoRA file for the pipeline's denoiser and text encoder, in diffusers' own format."""
    torch.manual_seed(seed)
    layers = {}
    for part, model in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
        targets = ["to_q", "to_v"] if part == "unet" else ["q_proj", "v_proj"]
        config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        adapted = inject_adapter_in_model(config, copy.deepcopy(model))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(adapted)
    type(pipeline).save_lora_weights(file.parent, weight_name=file.name, **layers)


def small_safety_checker(threshold: float) -> StableDiffusionSafetyChecker:
    """One that refuses what is more alike to its concepts than `threshold`; from -1 to 1."""
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 37, "image_size": 30, "patch_size": 2}
    config = CLIPConfig(vision_config=vision | {"num_hidden_layers": 1, "num_attention_heads": 2})
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.fill_(threshold)
    checker.special_care_embeds_weights.fill_(2.0)
    return checker.eval()


class Wave(nn.Module):
    """As a UNet: its Python looks at sizes, and odd ones take another way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        wave = torch.sin(self.layer(sample)) * scale
        if sample.shape[-1] % 2:
            wave = wave[..., :-1]
        return (wave.unflatten(-1, (2, -1)).sum(-2),)


class CountingWave(Wave):
    """Tells how often its Python ran."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def forward(self, sample: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        if not torch.compiler.is_compiling():
            self.num_calls += 1
        return super().forward(sample, scale)
