"""A first look on one machine: a bucket, pairs to put into it, and a job on them."""
