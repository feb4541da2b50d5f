"""``python -m detconv`` is ``detconv``."""

from detconv.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
