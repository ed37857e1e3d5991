"""Verify an output: check its plan and every chunk, encode a sample of rows again, and remove what is damaged."""
