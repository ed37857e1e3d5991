"""Check a cluster as a Ray job: ``ray job submit --working-dir . -- python jobs/doctor.py s3://bucket/images``."""

import sys

from inpaint_encode.cli import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
