"""``inpaint-encode plan``: estimate an encode job before it starts."""
