"""What a job will be, before it is begun: counts from the listing, estimates from a sample, a pace from a trial."""
