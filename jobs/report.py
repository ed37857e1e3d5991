"""Write a report as a Ray job: ``ray job submit … -- python jobs/report.py s3://… --html s3://…/report.html``."""

import sys

from inpaint_encode.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
