"""How the demonstration's VAE, ``inpaint_encode/demo/vae``, was trained; ``python -m`` it to do so again."""
