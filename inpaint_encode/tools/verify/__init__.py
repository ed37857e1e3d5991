"""Hold an output against its plan: `run` over all chunks, `checks` of one, `resample` some, `repair` what is wrong."""
