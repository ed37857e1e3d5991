"""What the job costs, beside what its work alone costs and what other programs for the same work cost."""
