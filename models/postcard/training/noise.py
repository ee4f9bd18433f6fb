"""The noise that the denoiser learns to take away, as diffusers' schedulers describe it.

Stable Diffusion's own end (0.012) leaves a large latent's layout readable in what is called pure
noise, so that in sampling nobody draws it; here next to nothing is left (1e-4 of the variance).
"""

from diffusers import DPMSolverMultistepScheduler

NUM_TIMESTEPS = 1000


def scheduler() -> DPMSolverMultistepScheduler:
    made = DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.022,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    # As in Stable Diffusion's own: a DDIM scheduler made from these would clip without them.
    made.register_to_config(clip_sample=False, set_alpha_to_one=False)
    return made


ALPHAS_CUMPROD = scheduler().alphas_cumprod
