"""The command ``export``: writes an output's rows as files for other tools, in Ray tasks."""
