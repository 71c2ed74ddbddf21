"""`python -m balms_det` is `balms-det`."""

from balms_det.commands.cli import main

main()
