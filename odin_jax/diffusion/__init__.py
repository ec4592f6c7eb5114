"""Diffusion: schedule, loss and sampler; knows only a `denoise_fn`."""
