"""Peers: other programs for the same work, each as a competent person writes it."""
