"""Verify an output as a Ray job: ``ray job submit --working-dir . -- python jobs/verify.py s3://bucket/output``."""

import sys

from inpaint_encode.cli import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:]])
