"""Run ``inpaint-encode export`` as a Ray job: ``ray job submit … -- python jobs/export.py s3://… --to …``."""

import sys

from inpaint_encode.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
