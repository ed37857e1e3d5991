"""The command ``export``: writes an output's rows as files for other tools, one Ray task per data file."""
