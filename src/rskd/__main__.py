"""`python -m rskd`, and `torchrun … -m rskd`: the command line."""

from rskd.cli import main

if __name__ == "__main__":
    main()
