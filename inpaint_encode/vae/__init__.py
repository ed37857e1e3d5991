"""VAEs of diffusers: `registry` lists supported classes, `load` loads one, `encode` runs it, `latents` decodes."""
