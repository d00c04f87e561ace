"""``python -m anyengine``: the command line, also where its script is not on the path."""

from anyengine.cli import main

if __name__ == "__main__":
    main()
