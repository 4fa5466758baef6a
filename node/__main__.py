"""Entry point of the `ichnode` command."""

from node.admin.cli import main

if __name__ == "__main__":
    main()
