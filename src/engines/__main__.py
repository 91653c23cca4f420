"""`python -m engines`: the command."""

from engines.cli.main import main

if __name__ == "__main__":
    main()
