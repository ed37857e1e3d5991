"""Encode pairs as a Ray job: ``ray job submit --working-dir . -- python jobs/encode.py --images … --output …``."""

import sys

from inpaint_encode.cli import main

if __name__ == "__main__":
    main(["encode", *sys.argv[1:]])
