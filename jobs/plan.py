"""Estimate a job as a Ray job: ``ray job submit --working-dir . -- python jobs/plan.py --images … --masks …``."""

import sys

from inpaint_encode.cli import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
