"""`python -m tokgolf`, as `torchrun -m tokgolf` needs it: the same as the `tokgolf` command."""

from tokgolf.cli import main

if __name__ == "__main__":
    main()
