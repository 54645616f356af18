"""`python -m nfckpt` is `nfckpt`."""

from nfckpt.cli import main

if __name__ == "__main__":
    main()
