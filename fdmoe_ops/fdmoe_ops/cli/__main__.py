"""`python -m fdmoe_ops.cli`, for places where the console script is not installed."""

from fdmoe_ops.cli import main

if __name__ == "__main__":
    main()
