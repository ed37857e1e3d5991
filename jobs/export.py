"""Export an output as a Ray job: ``ray job submit --working-dir . -- python jobs/export.py s3://… --to …``."""

import sys

from inpaint_encode.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
