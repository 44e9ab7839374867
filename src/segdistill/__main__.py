"""``python -m segdistill``, which ``torchrun -m segdistill`` needs."""

from segdistill.cli import main

if __name__ == "__main__":
    main()
