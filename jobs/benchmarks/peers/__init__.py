"""Other programs for the same work, each as a competent person writes it: what the job is measured against."""
