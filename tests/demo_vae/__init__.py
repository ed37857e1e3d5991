"""Training of the demonstration's VAE, ``inpaint_encode/demo/vae``: run ``python -m tests.demo_vae``."""
