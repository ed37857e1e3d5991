"""The benchmark: what the job costs, compared with the cost of its parts and of other programs for the same work."""
