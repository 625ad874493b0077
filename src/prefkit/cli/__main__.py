"""`python -m prefkit.cli`, and with it `torchrun -m prefkit.cli train run.yaml`."""

from prefkit.cli import main

main()
