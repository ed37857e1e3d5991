"""VAEs of diffusers: `registry` lists the supported classes, `load` loads one, `encode` and `decode` run it."""
