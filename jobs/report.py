"""Run ``inpaint-encode report`` as a Ray job: ``ray job submit … -- python jobs/report.py s3://… --html s3://…``."""

import sys

from inpaint_encode.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
