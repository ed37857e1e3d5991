"""VAEs of diffusers: `registry` lists the classes, `load` loads one, `encode` and `decode` run it."""
