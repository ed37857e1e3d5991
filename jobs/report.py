"""Print an output's report as a Ray job: ``ray job submit --working-dir . -- python jobs/report.py s3://…``."""

import sys

from inpaint_encode.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
