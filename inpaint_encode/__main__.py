"""``python -m inpaint_encode``: the command line."""

from inpaint_encode.cli import main

if __name__ == "__main__":
    main()
